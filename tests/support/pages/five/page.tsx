import { ChatWindow } from '@/components/ChatWindow'

export default function Page() {
  return [1, 2, 3, 4, 5].map((key) => <ChatWindow key={key} />)
}
