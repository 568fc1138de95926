/** Advice to developers about the errors on the host page. */

const ALLOWLIST =
  'On a public host this is usually the domain allowlist: ' +
  'add this host at platform.openai.com/settings/organization/security/domain-allowlist, ' +
  'and for a self-hosted chat set CHATKIT_DOMAIN_KEY to its key.'

const ADVICE: Record<string, string> = {
  openai_api_key_missing: 'Set OPENAI_API_KEY and restart, or set CHATKIT_BACKEND=selfhosted, which needs no key.',
  chatkit_workflow_missing: 'Set CHATKIT_WORKFLOW_ID and restart, or set CHATKIT_BACKEND=selfhosted, which needs no workflow.',
  openai_authentication_failed: 'OpenAI rejected the key: it is wrong or revoked. Set another OPENAI_API_KEY and restart.',
  openai_session_not_created:
    'Usually the key belongs to another project than the workflow. An OPENAI_API_KEY in the environment overrides .env. ' +
    'The log has the status of OpenAI. Hosted workflows ended on 30 November 2026: set CHATKIT_BACKEND=selfhosted.',
  openai_rate_limited: 'Wait a moment. If it persists, check the limits and the budget of the OpenAI project.',
  openai_unavailable: 'OpenAI does not respond in time. Try again in a moment, or check status.openai.com.',
  origin_not_allowed: `This origin is not allowed: add ${location.origin} to CHATKIT_ALLOWED_ORIGINS and restart.`,
  database_unavailable: 'The database of DATABASE_URL does not respond, or is full. The log says which.',
  service_busy: 'The process is at its concurrency limit, or shutting down. Try again in a moment.',
  thread_not_active: 'This conversation is locked or closed. Start another one in the chat.',
  request_refused: 'The server of CHATKIT_AGENT refused this, with the message above.',
  too_many_requests: 'Wait a moment. The limits are set by RATE_LIMIT and CHATKIT_MAX_REQUESTS_PER_MINUTE.',
  authentication_required:
    'The service requires signed-in users (AUTH_REQUIRED), and this page has no sign-in. Try it from your frontend.',
  script_not_loaded:
    "OpenAI's CDN, the only source of ChatKit, can't be reached: no internet connection, an ad blocker, or a firewall. " +
    'Then choose New session.',
  not_ready: `The frame stays blank. ${ALLOWLIST}`,
  removed: `ChatKit has removed itself. ${ALLOWLIST}`,
}

/** Return advice about any error. `missing` are the settings that `/readyz` names. */
export function adviceFor(error: Error & { code?: string; status?: number }, missing: readonly string[] = []): string {
  if (missing.length > 1 && /^(openai_api_key|chatkit_workflow)_missing$/.test(error.code || '')) {
    return `Set ${missing.join(' and ')} and restart, or set CHATKIT_BACKEND=selfhosted, which needs neither.`
  }
  if (error.code && ADVICE[error.code]) return ADVICE[error.code]!
  if (/domain verification/i.test(error.message)) return ADVICE.removed!
  if (isNetworkError(error)) return 'The service does not respond. Is it still running, and is this machine online?'
  return 'See the log of the service and the console of this browser.'
}

/** Whether a call to the service got no response. */
export function isNetworkError(error: Error & { code?: string; status?: number }): boolean {
  return error.name === 'ServiceError' && error.status === undefined && error.code === undefined
}

/** The settings named in a message like `Not ready. Missing: OPENAI_API_KEY, CHATKIT_WORKFLOW_ID`. */
export function missingSettings(message: string): string[] {
  return message.match(/\b[A-Z]+_[A-Z_]+\b/g) || []
}
