export * from '../../ai-sdk/src/relay-transport' // that is the file to copy
