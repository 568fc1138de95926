/** Runs in the browser before the app. Next.js inlines the environment variables at build time. */

import { setService } from '@/lib/service'

setService({ apiUrl: process.env.NEXT_PUBLIC_API_URL, domainKey: process.env.NEXT_PUBLIC_CHATKIT_DOMAIN_KEY })
