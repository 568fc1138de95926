/** The four steps of the host page. No step is shown as working while one that it depends on fails. */

export interface Facts {
  /** The result of `/readyz`; `null` before the first response. */
  service: 'ready' | 'unreachable' | { notReady: string } | null
  session: { id: string; secondsLeft: number } | 'failed' | null
  script: 'loaded' | 'failed' | null
  component: 'ready' | 'failed' | null
}

export type Step = 'settings' | 'session' | 'script' | 'ready'
export type StepStatus = readonly [state: 'waiting' | 'ok' | 'failed', text: string]

const WAITING: StepStatus = ['waiting', '…']

export function steps(facts: Facts): Record<Step, StepStatus> {
  return { settings: settings(facts), session: session(facts), script: script(facts), ready: chat(facts) }
}

function settings({ service }: Facts): StepStatus {
  if (!service) return WAITING
  if (service === 'unreachable') return ['failed', 'the service does not respond']
  return service === 'ready' ? ['ok', 'complete'] : ['failed', service.notReady]
}

function session({ service, session }: Facts): StepStatus {
  if (!session) return WAITING
  if (session === 'failed') return ['failed', 'none']
  if (service === 'unreachable') return ['failed', 'unavailable: the service does not respond']
  const seconds = Math.round(session.secondsLeft)
  if (!seconds) return ['waiting', `expired, ${session.id}: the next message gets a new session`]
  return ['ok', `${seconds} s left, ${session.id}`]
}

function script({ script }: Facts): StepStatus {
  if (!script) return WAITING
  return script === 'loaded' ? ['ok', 'loaded from OpenAI’s CDN'] : ['failed', 'not loaded']
}

function chat({ service, session, script, component }: Facts): StepStatus {
  if (script === 'failed') return ['failed', 'unavailable: the component is not loaded']
  if (component === 'failed') return ['failed', 'unavailable']
  if (service === 'unreachable') return ['failed', 'unavailable: the service does not respond']
  if (session === 'failed') return ['failed', 'unavailable: there is no session']
  if (service !== null && service !== 'ready') return ['failed', 'unavailable: the service is not ready']
  return component && session && service ? ['ok', 'ready, send a message'] : WAITING
}
