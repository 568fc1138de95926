/** What to do about an error, for whoever tries the service on its host page. */

const ALLOWLIST =
  'On a public host that is nearly always the domain allowlist: add this host at ' +
  'platform.openai.com/settings/organization/security/domain-allowlist, and for a self-hosted chat set CHATKIT_DOMAIN_KEY to its key.'

const ADVICE: Record<string, string> = {
  openai_api_key_missing: 'Set OPENAI_API_KEY and restart, or set CHATKIT_BACKEND=selfhosted, which needs no key.',
  chatkit_workflow_missing: 'Set CHATKIT_WORKFLOW_ID and restart, or set CHATKIT_BACKEND=selfhosted, which needs no workflow.',
  openai_authentication_failed: 'OpenAI refuses the key: it is wrong or revoked. Set another OPENAI_API_KEY and restart.',
  openai_session_not_created:
    'Nearly always the key belongs to another project than the workflow. A machine-wide OPENAI_API_KEY comes before the one in .env. ' +
    'The log has what OpenAI answered. Since 30 November 2026 hosted workflows are gone: set CHATKIT_BACKEND=selfhosted.',
  openai_rate_limited: "Wait a moment. If it stays, look at the OpenAI project's limits and budget.",
  openai_unavailable: 'OpenAI does not answer in time. Try again in a moment; status.openai.com says whether it is down.',
  origin_not_allowed: `The service does not know this address for its own: add ${location.origin} to CHATKIT_ALLOWED_ORIGINS and restart.`,
  database_unavailable: 'The database of DATABASE_URL does not answer. Is it up?',
  service_busy: 'The process does all it can at once, or is about to stop. Try again in a moment.',
  thread_not_active: 'This conversation is locked or closed. Begin another one in the chat.',
  too_many_requests: 'Wait a moment. The limits are set by RATE_LIMIT and CHATKIT_MAX_REQUESTS_PER_MINUTE.',
  authentication_required:
    'The service takes signed-in users only (AUTH_REQUIRED), and nobody is signed in on this page. Try it from your frontend.',
  script_not_loaded:
    "OpenAI's CDN can't be reached: no internet, an ad blocker, or a company's firewall. ChatKit comes from there and from nowhere else.",
  not_ready: `The frame stays blank. ${ALLOWLIST}`,
  removed: `ChatKit took itself away. ${ALLOWLIST}`,
}

/** A sentence that says what to do about `error`; there is one for every error. `missing` are the settings that `/readyz` names. */
export function adviceFor(error: Error & { code?: string; status?: number }, missing: readonly string[] = []): string {
  if (missing.length > 1 && /^(openai_api_key|chatkit_workflow)_missing$/.test(error.code || '')) {
    return `Set ${missing.join(' and ')} and restart, or set CHATKIT_BACKEND=selfhosted, which needs neither.`
  }
  if (error.code && ADVICE[error.code]) return ADVICE[error.code]!
  if (/domain verification/i.test(error.message)) return ADVICE.removed!
  if (isOfTheNetwork(error)) return 'The service does not answer. Is it still running, and is this machine online?'
  return 'The log of the service and the console of this browser have more about it.'
}

/** Whether a call to the service has got no response. */
export function isOfTheNetwork(error: Error & { code?: string; status?: number }): boolean {
  return error.name === 'ServiceError' && error.status === undefined && error.code === undefined
}

/** The names in `Not ready. Missing: OPENAI_API_KEY, CHATKIT_WORKFLOW_ID`. */
export function missingIn(message: string): string[] {
  return message.match(/\b[A-Z]+_[A-Z_]+\b/g) || []
}
