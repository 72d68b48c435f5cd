import react from '@vitejs/plugin-react';
import { defineConfig } from 'vitest/config';
import { mockBackend } from './dev/mock.ts';

const backend = process.env.TIDEGATE_DEV_BACKEND ?? 'http://127.0.0.1:8000';

export default defineConfig(({ mode }) => ({
  plugins: mode === 'mock' ? [react(), mockBackend()] : [react()],
  server: {
    proxy:
      mode === 'mock'
        ? {}
        : { '/api': backend, '/v1': backend, '/ws': { target: backend.replace('http', 'ws'), ws: true } },
  },
  build: {
    // One file per kind: the page is useless without all of it, and a strict CSP wants no inlined assets.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // Operators keep this page open for days; one file of 640 kB (206 kB compressed) beats a dozen round trips.
    chunkSizeWarningLimit: 800,
  },
  test: { environment: 'node', include: ['src/**/*.test.{ts,tsx}'] },
}));
