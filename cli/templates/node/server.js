// The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto.
'use strict'

const grpc = require('@grpc/grpc-js')
const { HealthImplementation } = require('grpc-health-check')
const loader = require('@grpc/proto-loader')

const replica = process.argv[2] ?? 'greeter'
// `weft up` sets the address. Only the sidecar calls it, so it needs no TLS: the sidecars have TLS between them.
const address = process.env.WEFT_LISTEN ?? '127.0.0.1:50051'

function hello(call, answer) {
  const name = call.request.name || 'world'
  console.log(`hello to ${name}`)
  answer(null, { text: `Hello, ${name}!`, answeredBy: replica })
}

// The contract is read at the start: no code is generated from it.
const contract = loader.loadSync('hello/v1/hello.proto', { includeDirs: [`${__dirname}/proto`], defaults: true })
const server = new grpc.Server()
server.addService(grpc.loadPackageDefinition(contract).hello.v1.Greeter.service, { hello })
// The sidecar asks for this, and sends no calls before the answer is SERVING.
new HealthImplementation({ '': 'SERVING' }).addToServer(server)

server.bindAsync(address, grpc.ServerCredentials.createInsecure(), error => {
  if (error) throw error
  console.log(`${replica} listens at ${address}`)
})

for (const signal of ['SIGTERM', 'SIGINT']) {
  // Accepts no new calls; running calls may end.
  process.on(signal, () => server.tryShutdown(() => process.exit(0)))
}
