/** GET /v1/models and /v1/models/{model}. */
import type { ServedModel } from '../served-model.js';
import type { ServeContext, Service } from '../service.js';

export const listModels = (c: ServeContext, service: Service): Response =>
  c.json({ object: 'list', data: [...service.models.values()].map(describe) });

export const oneModel = (c: ServeContext, service: Service): Response =>
  c.json(describe(service.model(decoded(c.req.path.slice('/v1/models/'.length)))));

/** What is no percent encoding is a name that no model has. */
function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

const describe = (model: ServedModel): object => ({
  id: model.name,
  object: 'model',
  created: model.createdSeconds,
  owned_by: 'hybrid-infer',
  context_length: model.backend.contextLength,
  has_chat_template: model.encoder.hasTemplate,
});
