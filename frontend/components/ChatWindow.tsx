'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { RUN_MESSAGES, canRetry, canStop } from '@/lib/active-run'
import { type ChatKitConfig, chatKitConfig } from '@/lib/chatkit-config'
import { lastThread, trackLastThread } from '@/lib/last-thread'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat with a loading state, the last conversation of this browser, and a retry button after errors. */
export function ChatWindow({ config = chatKitConfig }: { config?: ChatKitConfig }) {
  const [{ attempt, takesFocus }, setAttempt] = useState({ attempt: 0, takesFocus: false })
  const restart = (hadFocus: boolean) => setAttempt({ attempt: attempt + 1, takesFocus: hadFocus })
  return <Chat key={attempt} config={config} takesFocus={takesFocus} onRestart={restart} />
}

interface ChatProps {
  config: ChatKitConfig
  /** Focus the chat: the focused element was removed with the previous one. */
  takesFocus: boolean
  onRestart: (hadFocus: boolean) => void
}

function Chat({ config, takesFocus, onRestart }: ChatProps) {
  const darkMode = usePrefersDark()
  const section = useRef<HTMLElement>(null)
  const [initialThread] = useState(lastThread)
  const [tracker] = useState(trackLastThread)
  const [initialLoad, setInitialLoad] = useState<'not_started' | 'pending' | 'done'>(initialThread ? 'not_started' : 'done')
  const [isThreadMissing, setThreadMissing] = useState(false)

  const { chat, isReady, error, runStatus, stop, retry } = useChatKit(
    {
      ...config,
      theme: { ...config.theme, darkMode },
      onError(reason) {
        const thread = tracker.onError(reason)
        if (thread === 'not_found') return restart() // with a new conversation, and no error
        setInitialLoad('done')
        setThreadMissing(thread === 'not_loaded')
        config.onError?.(reason)
      },
    },
    {
      initialThread,
      onThreadChange: tracker.onThreadChange,
      onThreadLoadStart() {
        tracker.onThreadLoadStart()
        setInitialLoad((current) => (current === 'not_started' ? 'pending' : current))
      },
      onThreadLoadEnd() {
        tracker.onThreadLoadEnd()
        setInitialLoad('done')
      },
    },
  )
  // Hidden until the last conversation has loaded: a message to one that no longer exists would be lost.
  const isShown = isReady && initialLoad !== 'pending'

  function restart() {
    onRestart(section.current!.contains(document.activeElement))
  }

  useEffect(() => {
    if (takesFocus) section.current?.focus()
  }, [takesFocus])

  return (
    <section ref={section} tabIndex={-1} className="chat" aria-label="Chat" aria-busy={!isShown && !error}>
      <p role="status" className={isShown ? 'visually-hidden' : 'notice'}>
        {isShown ? 'Chat interface loaded' : !error && 'Loading chat...'}
      </p>
      {error && (
        <div role="alert" className="notice error">
          <p>Error: {error.message}</p>
          {(!isReady || isThreadMissing) && (
            <button type="button" onClick={restart}>
              Try again
            </button>
          )}
        </div>
      )}
      {isShown && runStatus && (
        <div role="status" aria-label="Response" className="notice">
          <p>{RUN_MESSAGES[runStatus]}</p>
          {canStop(runStatus) && (
            <button type="button" onClick={stop}>
              Stop
            </button>
          )}
          {canRetry(runStatus) && (
            <button type="button" onClick={retry}>
              Try again
            </button>
          )}
        </div>
      )}
      {/* In an element of its own: ChatKit may remove itself, and React can then only remove the parent. */}
      <div className={isShown ? 'chatkit' : 'chatkit loading'}>
        <ChatKit control={chat.control} />
      </div>
    </section>
  )
}

function usePrefersDark(): boolean {
  const query = () => window.matchMedia('(prefers-color-scheme: dark)')
  return useSyncExternalStore(
    (changed) => {
      const media = query()
      media.addEventListener('change', changed)
      return () => media.removeEventListener('change', changed)
    },
    () => query().matches,
    () => false,
  )
}
