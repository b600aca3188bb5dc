// A client of the TypeScript SDK that has a tool worked on in the background: `node drive-task.mjs URL TOKEN TOOL ARGUMENTS`. Prints what it saw.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { CallToolResultSchema, ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [url, token, name, given] = process.argv.slice(2);
const client = new Client({ name: "typescript", version: "1.0.0" }, { capabilities: { elicitation: { form: {} } } });
let asked = "";
client.setRequestHandler(ElicitRequestSchema, async (request) => {
  asked = request.params.message;
  return { action: "accept", content: { interpretation: "technical" } };
});
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: { Authorization: `Bearer ${token}` } } }));
await client.listTools();
const states = [];
let text, error;
for await (const said of client.experimental.tasks.callToolStream({ name, arguments: JSON.parse(given) }, CallToolResultSchema, { task: { ttl: 60000 } })) {
  states.push(said.type === "taskStatus" ? said.task.status : said.type);
  if (said.type === "result") text = said.result.content[0].text;
  if (said.type === "error") error = String(said.error);
}
console.log(JSON.stringify({ states, asked, text, error }));
await client.close();
