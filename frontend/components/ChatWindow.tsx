'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { type ChatKitConfig, chatKitConfig } from '@/lib/chatkit-config'
import { lastThread, threadKeeper } from '@/lib/last-thread'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat that says what it is waiting for, goes on where this browser left it, and can be tried again when it fails. */
export function ChatWindow({ config = chatKitConfig }: { config?: ChatKitConfig }) {
  const [{ attempt, takesFocus }, setAttempt] = useState({ attempt: 0, takesFocus: false })
  const restart = (hadFocus: boolean) => setAttempt({ attempt: attempt + 1, takesFocus: hadFocus })
  return <Chat key={attempt} config={config} takesFocus={takesFocus} onRestart={restart} />
}

interface ChatProps {
  config: ChatKitConfig
  /** What had the focus is gone with the chat before. */
  takesFocus: boolean
  onRestart: (hadFocus: boolean) => void
}

function Chat({ config, takesFocus, onRestart }: ChatProps) {
  const darkMode = usePrefersDark()
  const section = useRef<HTMLElement>(null)
  const [initialThread] = useState(lastThread)
  const [keeper] = useState(threadKeeper)
  const [initialLoad, setInitialLoad] = useState<'to come' | 'pending' | 'over'>(initialThread ? 'to come' : 'over')
  const [isThreadMissing, setThreadMissing] = useState(false)

  const { chat, isReady, error } = useChatKit(
    {
      ...config,
      theme: { ...config.theme, darkMode },
      onError(reason) {
        const thread = keeper.onError(reason)
        if (thread === 'gone') return restart() // no error for anybody: a new conversation begins
        setInitialLoad('over')
        setThreadMissing(thread === 'not_loaded')
        config.onError?.(reason)
      },
    },
    {
      initialThread,
      onThreadChange: keeper.onThreadChange,
      onThreadLoadStart() {
        keeper.onThreadLoadStart()
        setInitialLoad((now) => (now === 'to come' ? 'pending' : now))
      },
      onThreadLoadEnd() {
        keeper.onThreadLoadEnd()
        setInitialLoad('over')
      },
    },
  )
  // Not before it is known which conversation it is: a message to one that is gone would be lost.
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
      {/* A parent of its own: on a host that OpenAI does not allow, ChatKit removes itself, and React would stumble over that. */}
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
