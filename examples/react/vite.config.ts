import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

// With VITE_RELAY_URL=/api the page talks to its own origin and Vite passes it on, streams included.
export default defineConfig({
  plugins: [react()],
  server: {
    port: 5173,
    strictPort: true,
    proxy: {
      '/api': {
        target: 'http://127.0.0.1:8001',
        changeOrigin: true,
        rewrite: (path) => path.replace(/^\/api/, ''),
        // Vite would keep a stream open for ever when the relay has gone away in the middle of it.
        configure: (proxy) => proxy.on('proxyRes', (answer, _request, page) => answer.on('error', () => page.destroy())),
      },
    },
  },
})
