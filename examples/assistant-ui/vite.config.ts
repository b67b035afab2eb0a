import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

// The transport is that of ../ai-sdk, with the packages of this folder.
export default defineConfig({
  plugins: [react()],
  server: { fs: { allow: ['..'] } },
  resolve: { dedupe: ['eventsource-parser'] },
})
