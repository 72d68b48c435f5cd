import type { ChatBody } from '../../api/playground';

/** The same request for a terminal. The key stays a variable: a page that shows keys gets photographed. */
export function curlSnippet(origin: string, body: ChatBody): string {
  const json = JSON.stringify({ ...body, stream_options: undefined }, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${origin}/v1/chat/completions \\
  -H "Authorization: Bearer $TIDEGATE_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${json}'`;
}

export function pythonSnippet(origin: string, body: ChatBody): string {
  const messages = body.messages.map((one) => `        {"role": ${JSON.stringify(one.role)}, "content": ${JSON.stringify(one.content)}},`).join('\n');
  return `import os
from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=os.environ["TIDEGATE_KEY"])
stream = client.chat.completions.create(
    model=${JSON.stringify(body.model)},
    messages=[
${messages}
    ],
    max_tokens=${body.max_tokens},
    temperature=${body.temperature},
    stream=True,
    extra_body={"priority": ${JSON.stringify(body.priority)}},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)`;
}
