import { devices } from '@playwright/test'

const { defaultBrowserType: _, ...phone } = devices['Pixel 7']!

/** What people look at the example with. */
export const looks = {
  light: { colorScheme: 'light' },
  dark: { colorScheme: 'dark' },
  phone: { ...phone, colorScheme: 'light' },
} as const
