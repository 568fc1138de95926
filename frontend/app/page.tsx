import { ChatWindow } from '@/components/ChatWindow'

export default function Page() {
  return (
    <main>
      <h1>Chat</h1>
      <ChatWindow />
    </main>
  )
}
