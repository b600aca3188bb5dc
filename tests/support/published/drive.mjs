// A client of the TypeScript SDK: `node drive.mjs GENERATION URL TOKEN`, with the calls as JSON on standard input. Prints what it saw as JSON.
import { readFileSync } from "node:fs";

const [generation, url, token] = process.argv.slice(2);
const calls = JSON.parse(readFileSync(0, "utf8"));
const about = { name: "typescript", version: "1.0.0" };
const options = { requestInit: { headers: { Authorization: `Bearer ${token}` } } };

let client, transport;
if (generation === "2025-11-25") {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
  client = new Client(about);
  transport = new StreamableHTTPClientTransport(new URL(url), options);
} else {
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  client = new Client(about, { versionNegotiation: { mode: { pin: generation } } });
  transport = new StreamableHTTPClientTransport(new URL(url), options);
}
await client.connect(transport);
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const answers = [];
for (const call of calls) answers.push(await client.callTool(call));
console.log(JSON.stringify({ tools, answers }));
await client.close();
