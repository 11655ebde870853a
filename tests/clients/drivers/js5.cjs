// @deepgram/sdk 5. Its socket reconnects by itself after any close but 1000; the driver ends with the first close.
"use strict";
const { DeepgramClient } = require("@deepgram/sdk");
const { job, emit, answer, end, failed, atRealTime } = require("./_drive.cjs");

async function recordings(media) {
  try {
    answer("file", await media.transcribeFile(job.audio, job.query));
    answer("url", await media.transcribeUrl({ url: job.url, ...job.query }));
    await media.transcribeFile(job.audio, job.wrong);
  } catch (error) {
    failed(error);
  }
}

async function main() {
  const ws = job.base.replace("http", "ws");
  const environment = { base: job.base, production: ws, agent: ws, agentRest: job.base };
  const client = new DeepgramClient({ apiKey: job.key, environment });
  if (job.url) return recordings(client.listen.v1.media);
  const socket = await client.listen.v1.connect(job.query);
  const closed = new Promise((done) => socket.on("close", done));
  socket.on("message", emit);
  socket.on("error", failed);
  socket.connect();
  await socket.waitForOpen().catch(() => process.exit(0)); // refused: `failed` has said so
  await atRealTime(
    job,
    (chunk) => socket.sendMedia(chunk),
    () => socket.sendFinalize({ type: "Finalize" }),
    () => socket.sendKeepAlive({ type: "KeepAlive" }),
  );
  socket.sendCloseStream({ type: "CloseStream" });
  end(await closed);
  process.exit(0);
}

main();
