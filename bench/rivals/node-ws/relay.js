// The relay that the documentation of `ws` leads to: node relay.js PORT UPSTREAM_URL
'use strict';
const { WebSocket, WebSocketServer } = require('ws');

const [port, url] = process.argv.slice(2);

new WebSocketServer({ host: '127.0.0.1', port: Number(port), backlog: 4096 }).on('connection', (client, request) => {
  const upstream = new WebSocket(url + request.url);
  const early = [];
  client.on('message', (data, isBinary) => {
    if (upstream.readyState === WebSocket.OPEN) upstream.send(data, { binary: isBinary });
    else early.push([data, isBinary]);
  });
  upstream.on('open', () => {
    for (const [data, isBinary] of early) upstream.send(data, { binary: isBinary });
  });
  upstream.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
  client.on('close', () => upstream.close());
  upstream.on('close', () => client.close());
  client.on('error', () => upstream.terminate());
  upstream.on('error', () => client.terminate());
});
