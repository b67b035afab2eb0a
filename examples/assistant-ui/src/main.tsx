import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { App, model, url } from './App'
import { useRelayRuntime } from './relay-runtime'
import './styles.css'

const conversation = model ? { default_model: model } : {}

createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <App useRuntime={(thread) => useRelayRuntime({ ...thread, url, conversation })} />
  </StrictMode>,
)
