/** Where the service is, and which chat a page has. Needs neither React nor Next.js. */

export interface Service {
  apiUrl: string
  /** Set: the chat is the service's own. `null`: it is a hosted workflow's. ChatKit takes no domain key with the latter. */
  domainKey: string | null
}

const DEFAULTS: Service = { apiUrl: 'http://localhost:8000', domainKey: null }
let current = DEFAULTS

/** Say where the service is, once and before the first chat is drawn. What is blank or left out is the default. */
export function setService({ apiUrl, domainKey }: Partial<Service>): void {
  current = { apiUrl: apiUrl || DEFAULTS.apiUrl, domainKey: domainKey || DEFAULTS.domainKey }
}

export function service(): Service {
  return current
}
