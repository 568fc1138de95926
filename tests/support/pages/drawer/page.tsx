'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState } from 'react'
import { chatKitConfig } from '@/lib/chatkit-config'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat in a drawer that can be opened and closed, and a list of the errors that `onError` got. */
export default function Page() {
  const [open, setOpen] = useState(true)
  const [errors, setErrors] = useState<string[]>([])
  const onError = (error: Error) => setErrors((before) => [...before, error.message])
  const { chat, isReady } = useChatKit({ ...chatKitConfig, onError })
  return (
    <main>
      <button type="button" onClick={() => setOpen(!open)}>
        Drawer
      </button>
      <p role="status">{isReady ? 'ready' : 'not ready'}</p>
      {open && <ChatKit control={chat.control} style={{ display: 'block', height: '20rem' }} />}
      <ul aria-label="Events">
        {errors.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ul>
    </main>
  )
}
