/** The address and the backend of the service. Independent of React and Next.js. */

export interface Service {
  apiUrl: string
  /** OpenAI's domain key for a self-hosted chat; `null` for a hosted one, for which ChatKit accepts none. */
  domainKey: string | null
}

const DEFAULTS: Service = { apiUrl: 'http://localhost:8000', domainKey: null }
let current = DEFAULTS

/** Configure the service, once, before the first chat is rendered. Empty values mean the defaults. */
export function setService({ apiUrl, domainKey }: Partial<Service>): void {
  current = { apiUrl: apiUrl || DEFAULTS.apiUrl, domainKey: domainKey || DEFAULTS.domainKey }
}

export function service(): Service {
  return current
}
