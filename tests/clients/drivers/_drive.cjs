// What the JavaScript drivers share; the arguments and the output are those of _drive.py.
"use strict";
const fs = require("node:fs");

const CHUNK_MS = 100;
const [base, recording, options] = process.argv.slice(2);

const emit = (message) => console.log(JSON.stringify(message));

module.exports = {
  job: { base, audio: fs.readFileSync(recording), ...JSON.parse(options) },
  emit,
  answer: (of, response) => emit({ type: "_answer", of, response }),
  end: (closeEvent) => emit({ type: "_end", code: closeEvent.code }),

  // The majors name a refused handshake differently; all quote the status, unless the WebSocket is a browser's, which
  // hides it. Ports differ from server to server and are no part of the story.
  failed(error) {
    const status = error.statusCode ?? error.status ?? /server response: (\d+)/.exec(error.message)?.[1];
    const text = String(error.message).replaceAll(new URL(base).host, "HOST");
    emit(status ? { type: "_refused", status: Number(status) } : { type: "_error", error: text });
  },

  // Send the recording as a microphone would: a chunk when its last sample has been spoken. As in _drive.py, a
  // driver that was kept from running stays late.
  async atRealTime(job, send, finalize, keepAlive) {
    let due = performance.now();
    const chunkBytes = (job.rate * CHUNK_MS) / 1000;
    const marks = [
      [job.finalize, finalize],
      [job.keep_alive, keepAlive],
    ];
    for (let start = 0; start < job.audio.length; start += chunkBytes) {
      const chunk = job.audio.subarray(start, start + chunkBytes);
      const spoken = (start + chunk.length) / job.rate;
      due = Math.max(due + (chunk.length / job.rate) * 1000, performance.now());
      await new Promise((done) => setTimeout(done, due - performance.now()));
      send(chunk);
      while (marks.length && marks[0][0] <= spoken) marks.shift()[1]();
    }
  },
};
