// A real OpenID provider for tests: `node provider.mjs PORT KEYS`. KEYS is a JWK Set with private keys, the first of which signs.
// POST /__keys reads it again: what a provider does when it rotates its keys. Everything else is oidc-provider's own.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const [port, file] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const PEOPLE = {
  ann: { roles: ['analyst'], groups: ['research', 'audit'] },
  bob: { roles: ['guest'], groups: [] },
  many: { roles: [], _claim_names: { groups: 'src1' } },
};

function provider() {
  return new Provider(issuer, {
    jwks: JSON.parse(readFileSync(file)),
    clients: [['portal', '/back'], ['stranger', '/back'], ['remit', '/oauth/callback']].map(([client_id, path]) => ({
      client_id,
      token_endpoint_auth_method: 'none',
      application_type: 'native',
      redirect_uris: [`http://127.0.0.1${path}`],
      grant_types: ['authorization_code'],
      response_types: ['code'],
    })),
    claims: { openid: ['sub', 'roles'] },
    conformIdTokenClaims: false,
    cookies: { keys: ['only for tests'] },
    pkce: { required: () => true },
    findAccount: (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, ...PEOPLE[id] }) }),
    extraTokenClaims: async (ctx, token) => ({ org: 'main', ...PEOPLE[token.accountId] }),
    features: {
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'https://remit.example',
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'tasks', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300,
        }),
      },
    },
  });
}

let serve = provider().callback();
createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/__keys') {
    serve = provider().callback();
    response.end();
  } else {
    serve(request, response);
  }
}).listen(Number(port), '127.0.0.1', () => console.log('ready'));
