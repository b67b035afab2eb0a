import react from '@vitejs/plugin-react'
import { defineConfig, type CommonServerOptions } from 'vite'

const serving: CommonServerOptions = {
  port: 5173,
  proxy: {
    '/api': {
      target: process.env.RELAY_URL ?? 'http://127.0.0.1:8001',
      changeOrigin: false, // the relay lets a page in whose own origin it is: the Host must be the browser's
      rewrite: (path) => path.replace(/^\/api/, ''),
      // Vite would keep a stream open for ever when the relay has gone away in the middle of it.
      configure: (proxy) => proxy.on('proxyRes', (answer, _request, page) => answer.on('error', () => page.destroy())),
    },
  },
}

// With VITE_RELAY_URL=/api the page talks to its own origin and Vite passes it on, streams included.
export default defineConfig({ plugins: [react()], server: serving, preview: serving })
