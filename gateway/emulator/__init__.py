"""A Deepgram stand-in on a real port: faithful on a good day, and bad in every way that can be asked for."""

from gateway.emulator.emulator import Emulator, run
from gateway.emulator.knobs import BatchFault, Fault, Knobs
from gateway.emulator.records import ConnectionRecord, UploadRecord

__all__ = ["BatchFault", "ConnectionRecord", "Emulator", "Fault", "Knobs", "UploadRecord", "run"]
