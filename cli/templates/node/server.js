// The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto.
'use strict'

const grpc = require('@grpc/grpc-js')
const { HealthImplementation } = require('grpc-health-check')
const loader = require('@grpc/proto-loader')

const replica = process.argv[2] ?? 'greeter'
// `weft up` says where to listen. Only the sidecar calls this port, so it needs no TLS: that is between the sidecars.
const address = process.env.WEFT_LISTEN ?? '127.0.0.1:50051'

function hello(call, answer) {
  const name = call.request.name || 'world'
  console.log(`hello to ${name}`)
  answer(null, { text: `Hello, ${name}!`, answeredBy: replica })
}

// Read at the start: there is no code to be made from the contract.
const contract = loader.loadSync('hello/v1/hello.proto', { includeDirs: [`${__dirname}/proto`], defaults: true })
const server = new grpc.Server()
server.addService(grpc.loadPackageDefinition(contract).hello.v1.Greeter.service, { hello })
// The sidecar asks for this. Before the answer is SERVING nobody is sent here.
new HealthImplementation({ '': 'SERVING' }).addToServer(server)

server.bindAsync(address, grpc.ServerCredentials.createInsecure(), error => {
  if (error) throw error
  console.log(`${replica} listens at ${address}`)
})

for (const signal of ['SIGTERM', 'SIGINT']) {
  // No new calls; those that run may end.
  process.on(signal, () => server.tryShutdown(() => process.exit(0)))
}
