import { useChatKit } from '@openai/chatkit-react'
import { chatKitConfig } from '@/lib/chatkit-config'

export function ChatWindow() {
  const { chat, isReady, error } = useChatKit(chatKitConfig)

  return (
    <div>
      {!isReady && <div>Loading chat...</div>}
      {error && <div>Error: {error.message}</div>}
      {isReady && (
        <div>
          {/* ChatKit renders here */}
          Chat interface loaded
        </div>
      )}
    </div>
  )
}
