/** GET /health: the process lives. GET /ready: it takes requests. GET /metrics: Prometheus. */
import type { ServeContext, Service } from '../service.js';

export const health = (c: ServeContext, service: Service): Response =>
  c.json({ status: 'ok', state: service.state });

export function ready(c: ServeContext, service: Service): Response {
  service.requireReady();
  const models = [...service.models.values()].map((model) => ({
    id: model.name,
    slots: model.backend.slots,
    running: model.admission.running,
    queued: model.admission.queued,
  }));
  return c.json({ status: 'ready', models });
}

export async function metrics(c: ServeContext, { metrics: all, models }: Service): Promise<Response> {
  for (const model of models.values()) {
    all.queued.set({ model: model.name }, model.admission.queued);
    all.running.set({ model: model.name }, model.admission.running);
  }
  return c.body(await all.registry.metrics(), 200, { 'content-type': all.registry.contentType });
}
