// The guide's bridge in Node: an MCP server with the tools chat and code_generation, made of the official TypeScript
// SDK and the openai client. Over stdio, or with a port as argument over HTTP. It is what bench.py compares with.
import OpenAI from 'openai';
import { McpServer } from '@modelcontextprotocol/server';
import { z } from 'zod';

const openai = new OpenAI({ baseURL: process.env.LOCAL_API_URL, apiKey: process.env.OPENAI_API_KEY });
const model = process.env.MODEL_NAME;

async function complete(messages, temperature, max_tokens) {
  try {
    const completion = await openai.chat.completions.create({ model, messages, temperature, max_tokens });
    return { content: [{ type: 'text', text: completion.choices[0].message.content ?? '' }] };
  } catch (error) {
    return { content: [{ type: 'text', text: `The local model failed: ${error.message}` }], isError: true };
  }
}

function createServer() {
  const server = new McpServer({ name: 'local-llm', version: '1.0.0' });
  server.registerTool(
    'chat',
    {
      description: 'Ask the local model a question',
      inputSchema: z.object({
        message: z.string().min(1).describe('The question'),
        system: z.string().optional().describe('Instructions on how to answer'),
      }),
    },
    ({ message, system }) => {
      const instructions = system ? [{ role: 'system', content: system }] : [];
      return complete([...instructions, { role: 'user', content: message }], 0.7, 2000);
    },
  );
  server.registerTool(
    'code_generation',
    {
      description: 'Have the local model write code',
      inputSchema: z.object({
        task: z.string().min(1).describe('What the code is to do'),
        language: z.string().optional().describe('Programming language'),
      }),
    },
    ({ task, language }) => {
      const instructions = `You are an expert programmer.${language ? ` Write the code in ${language}.` : ''}`;
      const messages = [{ role: 'system', content: instructions }, { role: 'user', content: task }];
      return complete(messages, 0.3, 3000);
    },
  );
  return server;
}

const port = process.argv[2];
if (port) {
  const { createServer: createHttpServer } = await import('node:http');
  const { NodeStreamableHTTPServerTransport } = await import('@modelcontextprotocol/node');
  // Stateless, as the SDK shows it: a server and a transport per request.
  const http = createHttpServer(async (request, response) => {
    const server = createServer();
    const transport = new NodeStreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true });
    response.on('close', () => server.close());
    await server.connect(transport);
    await transport.handleRequest(request, response);
  });
  http.listen(Number(port), '127.0.0.1');
} else {
  const { StdioServerTransport } = await import('@modelcontextprotocol/server/stdio');
  await createServer().connect(new StdioServerTransport());
}
