/** The page of JSON schemas, from the zod schemas that the program checks with. */
import { z } from 'zod';
import { sessionSchema } from '../../dist/api/session.js';
import { headerSchema } from '../../dist/pack/schema.js';
import { schema as chat } from '../../dist/serve/routes/chat.js';
import { schema as completions } from '../../dist/serve/routes/completions.js';
import { schema as embeddings } from '../../dist/serve/routes/embeddings.js';
import { schema as responses } from '../../dist/serve/routes/responses.js';

const SCHEMAS = [
  ['POST /v1/chat/completions', 'The body of a request.', chat],
  ['POST /v1/completions', 'The body of a request.', completions],
  ['POST /v1/responses', 'The body of a request.', responses],
  ['POST /v1/embeddings', 'The body of a request.', embeddings],
  ['A session', 'The file that `session.save` and `/save` in `chat` write.', sessionSchema],
  ["A pack's header", 'The JSON at the beginning of a pack: [pack format](../pack-format.md).', headerSchema],
];

export function schemaPage() {
  const parts = SCHEMAS.map(([title, text, schema]) => {
    const json = JSON.stringify(z.toJSONSchema(schema, { io: 'input' }), null, 2);
    return `## ${title}\n\n${text}\n\n\`\`\`json\n${json}\n\`\`\``;
  });
  return `# JSON schemas

Made from the schemas that the program itself checks with (JSON Schema, draft 2020-12). Conditions between fields are
checked too and stand in the pages of each: [serving](../serve.md), [library](../api.md). What commands print with
\`--json\` is in [JSON output](../json.md).

${parts.join('\n\n')}
`;
}
