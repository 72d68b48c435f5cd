import { request } from './http';

interface Order {
  id: string;
  draining: boolean;
}

/** Orders a worker to take no new request, or to take them again; it obeys within a second. */
export async function orderDrain(worker: string, draining: boolean): Promise<Order> {
  const path = `/api/v1/fleet/workers/${encodeURIComponent(worker)}/drain`;
  return (await request<Order>(path, { method: draining ? 'POST' : 'DELETE' })).body;
}
