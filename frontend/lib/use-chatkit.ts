'use client'

/** The contract's `useChatKit(config)`, a wrapper around the hook of `@openai/chatkit-react`. */

import { type UseChatKitOptions, type UseChatKitReturn, useChatKit as useOpenAIChatKit } from '@openai/chatkit-react'
import { useEffect, useEffectEvent, useLayoutEffect, useMemo, useRef, useState } from 'react'
import { RunFollower, type RunStatus } from './active-run'
import { ComponentError, startReadyTimeout, loadChatKit, watchRemoval } from './chatkit-component'
import type { ChatKitConfig } from './chatkit-config'
import {
  type CallListeners,
  type Choices,
  chatKitApi,
  chatKitTheme,
  composerOption,
  loadChoices,
  messageText,
} from './chatkit-options'
import { type ServiceError, USER_MESSAGES, UserFacingError } from './errors'
import { PageSession, type Session } from './page-session'
import { service } from './service'

export interface Chat {
  /**
   * The result of the hook of `@openai/chatkit-react`. Render `<ChatKit control={chat.control} />` from the start, because it
   * only becomes ready in the page, and in an element of its own: ChatKit may remove itself, and React can then only remove
   * its parent.
   */
  chat: UseChatKitReturn
  /** Whether there is a session and the component is loaded and in the page. */
  isReady: boolean
  /** The last error, until a later success. Its `message` can be shown to the user; its `cause` is the original error. */
  error: UserFacingError | null
  /**
   * Whether a response in this conversation goes on without a reader, after a reload or a cut connection, or was interrupted.
   * `RUN_MESSAGES` has a text for each. ChatKit shows neither, and its composer can't be locked.
   */
  runStatus: RunStatus | null
  /** Stop a response that goes on. Its text so far is kept. */
  stop: () => void
  /** Retry an interrupted response. */
  retry: () => void
}

/** The state of the component. `unmounted`: not rendered. `removed`: it has removed itself. */
type Stage = 'loading' | 'loaded' | 'ready' | 'unmounted' | 'removed'

/**
 * A chat with the contract's configuration.
 *
 * `config.onMessage` is called with each message that the user sends; in a hosted chat, only with those sent by
 * `chat.sendUserMessage`. `config.onError` is called once per error. `config.api.getClientSecret` is read on the first render
 * only, and should be a module-level function.
 *
 * `options` are passed to ChatKit: start screen, composer, `initialThread`, `onThreadChange`, …. The composer also gets the models
 * and tools that the service lists, and dictation if the service has it and the page does not set it.
 */
export function useChatKit(config: ChatKitConfig, options: Omit<UseChatKitOptions, 'api' | 'theme' | 'onError'> = {}): Chat {
  const [pageSession] = useState(() => PageSession.of(config.api.getClientSecret))
  const [hasSession, setHasSession] = useState(false)
  const [stage, setStage] = useState<Stage>('loading')
  const [error, setError] = useState<UserFacingError | null>(null)
  const [runStatus, setRunStatus] = useState<RunStatus | null>(null)
  const [choices, setChoices] = useState<Choices | null>(null)
  const sessionError = useRef<Error | null>(null)
  const failedCall = useRef<ServiceError | null>(null)
  const watched = useRef({ element: null as HTMLElement | null, stop: () => {} })

  const latest = useRef(config) // the handlers may change while a call is pending
  useLayoutEffect(() => {
    latest.current = config
  })

  function report(reason: Error, fallback?: string) {
    setError(new UserFacingError(reason, fallback))
    latest.current.onError?.(reason)
  }

  const [session] = useState<Session>(() => ({
    async secret(existing) {
      try {
        const secret = await pageSession.secret(existing)
        const resolved = sessionError.current
        sessionError.current = null
        setError((shown) => (shown?.cause === resolved ? null : shown))
        setHasSession(true)
        return secret
      } catch (cause) {
        const reason = cause instanceof Error ? cause : new Error(String(cause))
        if (reason !== sessionError.current) report(reason, USER_MESSAGES.again) // callers that share a call share its error
        sessionError.current = reason
        throw reason
      }
    },
    invalidate: (secret) => pageSession.invalidate(secret),
  }))
  const [runs] = useState(() => new RunFollower(session, setRunStatus))
  const [listeners] = useState<CallListeners>(() => ({
    onMessage: (message) => latest.current.onMessage?.(message),
    onFailure: (failure) => (failedCall.current = failure),
    runs,
  }))

  const chatKit = useOpenAIChatKit({
    ...options,
    ...(choices && { composer: composerOption(options.composer, choices) }),
    api: chatKitApi(session, listeners),
    theme: chatKitTheme(config.theme),
    onReady() {
      setStage('ready')
      setError((shown) => (shown?.cause instanceof ComponentError ? null : shown))
      options.onReady?.()
    },
    onResponseStart() {
      setError(null)
      options.onResponseStart?.()
    },
    onThreadChange(event) {
      runs.show(event.threadId)
      options.onThreadChange?.(event)
    },
    onError({ error: chatKitError }) {
      if (sessionError.current) return // the cause, already reported
      const reason = failedCall.current ?? chatKitError
      failedCall.current = null
      if (!service().domainKey) pageSession.invalidate() // OpenAI may have rejected the secret, and does not say so
      console.error('ChatKit:', reason)
      if (stage !== 'removed') report(reason) // else the removal is reported, which says more
    },
  })
  const { ref, sendUserMessage } = chatKit
  useLayoutEffect(() => {
    runs.connect(chatKit.fetchUpdates)
  })

  const reportComponentError = useEffectEvent((reason: ComponentError) => {
    console.error('ChatKit:', reason)
    report(reason)
  })

  useEffect(() => {
    let isUnmounted = false
    session.secret().catch(() => {}) // already reported; called before ChatKit loads, to show a failure at once
    void loadChoices().then((loaded) => isUnmounted || setChoices(loaded))
    loadChatKit().then(
      () => isUnmounted || setStage((current) => (current === 'loading' ? 'loaded' : current)),
      (reason: ComponentError) => isUnmounted || reportComponentError(reason),
    )
    if (!ref.current) {
      setStage('unmounted')
      reportComponentError(
        new ComponentError(
          'not_drawn',
          '<ChatKit control={chat.control} /> is not rendered. Render it even while isReady is false.',
        ),
      )
    }
    return () => {
      isUnmounted = true
    }
  }, [ref, session])

  useEffect(() => {
    if (stage === 'loaded' && ref.current) return startReadyTimeout(reportComponentError)
  }, [stage, ref])

  const watchElement = useEffectEvent(() => {
    const element = ref.current
    if (element === watched.current.element) return
    watched.current.stop()
    if (!element) setStage('unmounted')
    else if (watched.current.element || stage === 'unmounted') setStage('loaded')
    const stop = element
      ? watchRemoval(element, (reason) => {
          if (ref.current !== element) return setStage('unmounted') // removed by React
          setStage('removed')
          reportComponentError(reason)
        })
      : () => {}
    watched.current = { element, stop }
  })
  useEffect(() => watchElement()) // after every render, which may have replaced or removed the element

  useEffect(
    () => () => {
      watched.current.stop()
      watched.current = { element: null, stop: () => {} }
      runs.dispose()
    },
    [runs],
  )

  const chat = useMemo<UseChatKitReturn>(() => {
    if (service().domainKey) return chatKit
    return {
      ...chatKit,
      async sendUserMessage(message) {
        const isRendered = ref.current !== null // else the message is not sent
        await sendUserMessage(message)
        if (isRendered) latest.current.onMessage?.(message.text ?? messageText(message.content ?? []))
      },
    }
  }, [chatKit, ref, sendUserMessage])
  return {
    chat,
    isReady: hasSession && stage === 'ready',
    error,
    runStatus,
    stop: () => void runs.stop(),
    retry: () => void runs.retry(),
  }
}
