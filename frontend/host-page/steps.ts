/** What the host page knows, and what its four steps say of it. No step says that it works while one that it needs does not. */

export interface Facts {
  /** What `/readyz` says; `null` until it has said something. */
  service: 'ready' | 'unreachable' | { notReady: string } | null
  session: { id: string; secondsLeft: number } | 'failed' | null
  script: 'loaded' | 'failed' | null
  component: 'ready' | 'failed' | null
}

export type Step = 'settings' | 'session' | 'script' | 'ready'
export type Shown = readonly [state: 'waiting' | 'ok' | 'failed', text: string]

const WAITING: Shown = ['waiting', '…']

export function steps(facts: Facts): Record<Step, Shown> {
  return { settings: settings(facts), session: session(facts), script: script(facts), ready: chat(facts) }
}

function settings({ service }: Facts): Shown {
  if (!service) return WAITING
  if (service === 'unreachable') return ['failed', 'the service does not answer']
  return service === 'ready' ? ['ok', 'complete'] : ['failed', service.notReady]
}

function session({ service, session }: Facts): Shown {
  if (!session) return WAITING
  if (session === 'failed') return ['failed', 'none']
  if (service === 'unreachable') return ['failed', 'not without the service']
  const seconds = Math.round(session.secondsLeft)
  if (!seconds) return ['waiting', `${session.id}, run out: the next message gets a new one`]
  return ['ok', `${session.id}, ${seconds} s left`]
}

function script({ script }: Facts): Shown {
  if (!script) return WAITING
  return script === 'loaded' ? ['ok', 'loaded from OpenAI’s CDN'] : ['failed', 'not loaded']
}

function chat({ service, session, script, component }: Facts): Shown {
  if (script === 'failed') return ['failed', 'not without the component']
  if (component === 'failed') return ['failed', 'not there']
  if (service === 'unreachable') return ['failed', 'not without the service']
  if (session === 'failed') return ['failed', 'not without a session']
  if (service !== null && service !== 'ready') return ['failed', 'not before the settings are complete']
  return component && session && service ? ['ok', 'ready, say something'] : WAITING
}
