/** GET /v1/models and /v1/models/{model}. */
import type { ServedModel } from '../served-model.js';
import type { ServeContext, Service } from '../service.js';

export const listModels = (c: ServeContext, service: Service): Response =>
  c.json({ object: 'list', data: [...service.models.values()].map(describe) });

export const oneModel = (c: ServeContext, service: Service): Response =>
  c.json(describe(service.model(decodeURIComponent(c.req.path.slice('/v1/models/'.length)))));

const describe = (model: ServedModel): object => ({
  id: model.name,
  object: 'model',
  created: model.createdSeconds,
  owned_by: 'hybrid-infer',
  context_length: model.backend.contextLength,
  has_chat_template: model.encoder.hasTemplate,
});
