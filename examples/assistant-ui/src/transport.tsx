import { useAISDKError } from '@assistant-ui/ai-sdk'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { App, model, url } from './App'
import { relayTransport } from './relay-transport'
import { useTransportRuntime } from './transport-runtime'
import './styles.css'

const transport = relayTransport(url, { conversation: model ? { default_model: model } : {} })

createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <App useRuntime={(thread) => useTransportRuntime({ ...thread, transport })} useError={useAISDKError} />
  </StrictMode>,
)
