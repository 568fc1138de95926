/** Runs in the browser before any page of this app. Next.js puts the variables' values here when it builds the app. */

import { setService } from '@/lib/service'

setService({ apiUrl: process.env.NEXT_PUBLIC_API_URL, domainKey: process.env.NEXT_PUBLIC_CHATKIT_DOMAIN_KEY })
