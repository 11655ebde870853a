// A bull-board on the queue NAME with the prefix PREFIX at Redis, on a free port that it prints.
"use strict";
const { createBullBoard } = require("@bull-board/api");
const { BullMQAdapter } = require("@bull-board/api/bullMQAdapter");
const { HonoAdapter } = require("@bull-board/hono");
const { serve } = require("@hono/node-server");
const { serveStatic } = require("@hono/node-server/serve-static");
const { Queue } = require("bullmq");
const { Hono } = require("hono");

const [redis, name, prefix] = process.argv.slice(2);
const { hostname: host, port } = new URL(redis);
const serverAdapter = new HonoAdapter(serveStatic);
const queue = new Queue(name, { connection: { host, port: Number(port) }, prefix });
createBullBoard({ queues: [new BullMQAdapter(queue)], serverAdapter });

const app = new Hono().route("/", serverAdapter.registerPlugin());
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: 0 }, (at) => console.log(at.port));
