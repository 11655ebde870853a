// @deepgram/sdk 3 and 4.
"use strict";
const { createClient, LiveTranscriptionEvents } = require("@deepgram/sdk");
const { job, emit, answer, end, failed, atRealTime } = require("./_drive.cjs");

const fetch = { options: { url: job.base } };
const websocket = { options: { url: job.base.replace("http", "ws") } };
const client = createClient(job.key, { global: { fetch, websocket } });

async function recordings(rest) {
  const asked = {
    file: () => rest.transcribeFile(job.audio, job.query),
    url: () => rest.transcribeUrl({ url: job.url }, job.query),
    wrong: () => rest.transcribeFile(job.audio, job.wrong),
  };
  for (const [of, ask] of Object.entries(asked)) {
    const { result, error } = await ask();
    if (error) return failed(error);
    answer(of, result);
  }
}

function call() {
  const socket = client.listen.live(job.query);
  socket.on(LiveTranscriptionEvents.Open, async () => {
    await atRealTime(job, (chunk) => socket.send(chunk), () => socket.finalize(), () => socket.keepAlive());
    socket.requestClose();
  });
  socket.on(LiveTranscriptionEvents.Transcript, emit);
  socket.on(LiveTranscriptionEvents.Metadata, emit);
  socket.on(LiveTranscriptionEvents.SpeechStarted, emit);
  socket.on(LiveTranscriptionEvents.Unhandled, emit);
  socket.on(LiveTranscriptionEvents.Error, failed);
  socket.on(LiveTranscriptionEvents.Close, end);
}

if (job.url) recordings(client.listen.prerecorded);
else call();
