/**
 * The script of the host page: starts a chat step by step, and shows which steps work and what to do about those that fail.
 * `npm run build:host-page` builds `static/host.js` from it, for the browsers of the contract.
 */

import type { OpenAIChatKit } from '@openai/chatkit'
import { RUN_MESSAGES, RunFollower, type RunStatus, canRetry, canStop } from '../lib/active-run'
import { loadChatKit, startReadyTimeout, watchRemoval } from '../lib/chatkit-component'
import { chatKitConfig, describeSession, expire, getClientSecret } from '../lib/chatkit-config'
import { type Choices, chatKitApi, chatKitTheme, loadChoices } from '../lib/chatkit-options'
import { ServiceError, userMessage } from '../lib/errors'
import { lastThread, trackLastThread } from '../lib/last-thread'
import { PageSession, type Session } from '../lib/page-session'
import { setService } from '../lib/service'
import { adviceFor, isNetworkError, missingSettings } from './advice'
import { type Facts, type Step, steps } from './steps'

const CHECK_INTERVAL_MS = 10_000

setService({ apiUrl: location.origin, domainKey: document.body.dataset.domainKey }) // absent for a hosted chat

const pageSession = PageSession.of(getClientSecret)
const facts: Facts = { service: null, session: null, script: null, component: null }
let error: Error | null = null
let runStatus: RunStatus | null = null
let currentSecret: string | null = null
let failedCall: ServiceError | null = null
let chat: OpenAIChatKit | null = null
let choices: Choices | null = null
let stopWatching = () => {}
let startCount = 0
let isChecking = false

const session: Session = {
  async secret(existing) {
    try {
      currentSecret = await pageSession.secret(existing)
      if (facts.session === 'failed') error = null
      updateSession()
      return currentSecret
    } catch (reason) {
      facts.session = 'failed'
      currentSecret = null
      showError(reason as Error) // getClientSecret has logged it
      throw reason
    }
  },
  invalidate: (secret) => pageSession.invalidate(secret),
}

const runs = new RunFollower(session, (status) => {
  runStatus = status
  render()
})

function byId(id: string): HTMLElement {
  return document.getElementById(id)!
}

/** Update the page. Only changes are written to it, because screen readers announce each one. */
function render(): void {
  for (const [step, [state, text]] of Object.entries(steps(facts))) {
    const item = byId(step as Step)
    if (item.dataset.state !== state) item.dataset.state = state
    setText(item.querySelector('.state')!, text)
  }
  const notReady = facts.service !== null && typeof facts.service === 'object' ? facts.service.notReady : ''
  if (error) {
    // The service's messages tell a developer more than those for users.
    setText(byId('error-message'), error instanceof ServiceError && error.code ? error.message : userMessage(error))
    setText(byId('error-advice'), adviceFor(error, missingSettings(notReady)))
  }
  byId('error').hidden = !error
  setText(byId('run-message'), runStatus ? RUN_MESSAGES[runStatus] : '')
  byId('stop').hidden = !canStop(runStatus)
  byId('retry').hidden = !canRetry(runStatus)
}

function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text
}

function updateSession(): void {
  const described = currentSecret && describeSession(currentSecret)
  if (described) facts.session = { id: described.sessionId, secondsLeft: described.secondsLeft }
  render()
}

function report(reason: Error): void {
  console.error('ChatKit:', reason)
  showError(reason)
}

function showError(reason: Error): void {
  error = reason
  render()
  if (isNetworkError(reason)) void checkService()
}

/** Check the state of the service, so that the page does not show an outdated one. */
async function checkService(): Promise<void> {
  if (isChecking) return
  isChecking = true
  const wasUnreachable = facts.service === 'unreachable'
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), CHECK_INTERVAL_MS)
  try {
    const response = await fetch('/readyz', { signal: controller.signal })
    const { message } = await response.json()
    facts.service = response.ok ? 'ready' : { notReady: message }
  } catch {
    facts.service = 'unreachable'
  }
  clearTimeout(timer)
  isChecking = false
  if (wasUnreachable && facts.service !== 'unreachable') {
    if (facts.session === 'failed') return start()
    if (error && isNetworkError(error)) error = null
  }
  render()
}

/** Start over with a new session and a new component. */
async function start(): Promise<void> {
  const thisStart = ++startCount
  stopWatching()
  chat?.remove()
  pageSession.invalidate()
  Object.assign(facts, { service: null, session: null, script: null, component: null })
  error = currentSecret = null
  render()
  void checkService()
  session.secret().catch(() => {}) // already reported
  try {
    await loadChatKit()
  } catch (reason) {
    if (thisStart !== startCount) return
    facts.script = 'failed'
    return report(reason as Error)
  }
  if (thisStart !== startCount) return
  facts.script = 'loaded'
  mountComponent()
}

function mountComponent(): void {
  const element = document.createElement('openai-chatkit') as OpenAIChatKit
  const fail = (reason: Error) => {
    facts.component = 'failed'
    report(reason)
  }
  const tracker = trackLastThread()
  runs.dispose()
  stopWatching()
  const stopTimeout = startReadyTimeout(fail)
  element.addEventListener('chatkit.ready', () => {
    stopTimeout()
    facts.component = 'ready'
    render()
  })
  element.addEventListener('chatkit.error', ({ detail }) => {
    if (facts.session === 'failed') return // the cause, already reported
    const reason = failedCall ?? detail.error
    failedCall = null
    if (tracker.onError(reason) === 'not_found') return mountComponent() // with a new conversation
    report(reason)
  })
  element.addEventListener('chatkit.response.start', () => {
    error = null
    render()
  })
  element.addEventListener('chatkit.thread.change', ({ detail }) => {
    runs.show(detail.threadId)
    tracker.onThreadChange(detail)
  })
  element.addEventListener('chatkit.thread.load.start', tracker.onThreadLoadStart)
  element.addEventListener('chatkit.thread.load.end', tracker.onThreadLoadEnd)
  byId('chat').replaceChildren(element)
  const stopObserving = watchRemoval(element, fail)
  stopWatching = () => {
    stopTimeout()
    stopObserving()
  }
  facts.component = null
  chat = element
  runs.connect(() => element.fetchUpdates())
  render()
  configure()
}

function configure(): void {
  chat?.setOptions({
    api: chatKitApi(session, { onFailure: (failure) => (failedCall = failure), runs }),
    theme: chatKitTheme({ ...chatKitConfig.theme, darkMode: document.documentElement.dataset.theme === 'dark' }),
    initialThread: lastThread(),
    ...(choices && { composer: choices }),
    startScreen: {
      greeting: 'What can I help with today?',
      prompts: [
        { label: 'Say hello', prompt: 'Hello!' },
        { label: 'What can you do?', prompt: 'What can you do?' },
      ],
    },
  })
}

function setDark(dark: boolean): void {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light'
  byId('dark').setAttribute('aria-pressed', String(dark))
  configure()
}

const systemDark = matchMedia('(prefers-color-scheme: dark)')

byId('stop').addEventListener('click', () => void runs.stop())
byId('retry').addEventListener('click', () => void runs.retry())
byId('new').addEventListener('click', () => void start())
byId('expire').addEventListener('click', () => {
  if (currentSecret) expire(currentSecret)
  updateSession()
})
byId('dark').addEventListener('click', () => setDark(document.documentElement.dataset.theme !== 'dark'))
systemDark.addEventListener('change', ({ matches }) => setDark(matches))
setInterval(updateSession, 1000)
setInterval(() => document.hidden || void checkService(), CHECK_INTERVAL_MS)
setDark(systemDark.matches)
void start()
void loadChoices().then((loaded) => {
  choices = loaded
  if (choices) configure()
})
