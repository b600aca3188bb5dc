// A client of an older release of the TypeScript SDK: `node drive.mjs URL TOKEN`. Prints what it saw as JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, token] = process.argv.slice(2);
// What it asks for is the newest that it knows.
let protocol;
const real = globalThis.fetch;
globalThis.fetch = (input, init) => {
  protocol ??= /"protocolVersion":"([^"]+)"/.exec(init?.body ?? "")?.[1];
  return real(input, init);
};
const client = new Client({ name: "typescript", version: "1.0.0" });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: { Authorization: `Bearer ${token}` } } }));
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const answer = (await client.callTool({ name: "echo", arguments: { text: "from typescript" } })).content;
console.log(JSON.stringify({ protocol, tools, answer }));
await client.close();
