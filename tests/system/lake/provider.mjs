// The OpenID provider: people log in with their name and any password, and get the storage scopes that their groups allow,
// as INDIGO IAM and EGI Check-in do it.
import fs from 'node:fs';
import https from 'node:https';
import Provider from 'oidc-provider';

const { ISSUER, AUDIENCE, SECRET, STATE, PROVIDER_PORT } = process.env;
const read = (path) => fs.readFileSync(`${STATE}/${path}`);

const GROUPS = {
  producer: ['/lattice', '/lattice/producers'],
  reader: ['/lattice'],
  operator: [],
  outsider: ['/other'],
};
const ALLOWED = {
  '/lattice': ['storage.read'],
  '/lattice/producers': ['storage.read', 'storage.modify', 'storage.create', 'storage.stage'],
};
const places = (actions) => actions.flatMap((action) => [`${action}:/lattice`, `${action}:/lattice/`]);
const allowed = (user) => GROUPS[user].flatMap((group) => places(ALLOWED[group] ?? []));

const entitlement = (group) => `urn:mace:egi.eu:group:${group.slice(1).replaceAll('/', ':')}:role=member#aai.egi.eu`;
const membership = (user) => ({ 'wlcg.groups': GROUPS[user], eduperson_entitlement: GROUPS[user].map(entitlement) });

const OPENID = ['openid', 'profile', 'offline_access', 'wlcg.groups', 'eduperson_entitlement'];
const SCOPES = [...OPENID, ...places(ALLOWED['/lattice/producers'])].join(' ');
const HOUR = 3600;
const LIFETIME = { 'lake-short': 20 }; // seconds; an hour for other clients

const person = (client_id) => ({
  client_id,
  token_endpoint_auth_method: 'none',
  application_type: 'native',
  grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
  response_types: [],
  redirect_uris: [],
});

const provider = new Provider(ISSUER, {
  clients: [
    person('lake-cli'),
    person('lake-short'),
    { ...person('lake-agent'), token_endpoint_auth_method: 'client_secret_basic', client_secret: SECRET }, // for oidc-agent
    { client_id: 'rucio', client_secret: SECRET, grant_types: ['client_credentials'], response_types: [], redirect_uris: [] },
  ],
  jwks: JSON.parse(read('provider/jwks.json')),
  cookies: { keys: [SECRET] },
  scopes: OPENID,
  claims: { openid: ['sub'], profile: ['name', 'preferred_username'] },
  ttl: { DeviceCode: 600, RefreshToken: 24 * HOUR, IdToken: HOUR, Grant: 24 * HOUR, Session: HOUR, Interaction: HOUR },
  features: {
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => AUDIENCE,
      useGrantedResource: () => true,
      getResourceServerInfo: (context, audience, client) => ({
        scope: SCOPES,
        audience,
        accessTokenTTL: LIFETIME[client.clientId] ?? HOUR,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  issueRefreshToken: () => true,
  rotateRefreshToken: () => true,
  findAccount: (context, user) =>
    user in GROUPS ? { accountId: user, claims: () => ({ sub: user, name: user, preferred_username: user }) } : undefined,
  extraTokenClaims: (context, token) => ({ 'wlcg.ver': '1.0', ...(token.accountId && membership(token.accountId)) }),
});

const { save } = provider.AccessToken.prototype;
provider.AccessToken.prototype.save = function saveWhatIsAllowed(...options) {
  const mine = allowed(this.accountId);
  this.scope = [...this.scopes].filter((scope) => !scope.startsWith('storage.') || mine.includes(scope)).join(' ');
  return save.apply(this, options);
};

https
  .createServer({ key: read('pki/host.key'), cert: read('pki/host.crt') }, provider.callback())
  .listen(PROVIDER_PORT, '127.0.0.1');
