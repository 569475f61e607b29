# frozen_string_literal: true

# The Ruby library as a server of its own, with just enough around it to publish and to count.

require "json"
require "socket"
require "message_bus"

MessageBus.configure(backend: :memory)
MessageBus.long_polling_interval = 3_600_000
MessageBus.max_active_clients = 100_000
MessageBus.user_id_lookup { |env| env["HTTP_X_MESSAGEBUS_USER"]&.to_i }
MessageBus.group_ids_lookup { |_env| [10, 11] }
MessageBus.extra_response_headers_lookup { |_env| { "x-discourse-route" => "message-bus" } }

publish = lambda do |fields|
  id = MessageBus.publish(fields["channel"], fields["data"], user_ids: fields["user_ids"])
  { channel: fields["channel"], message_id: id, global_id: 0 }
end

# The library learns that a client has gone when it writes to it. Whoever waits for that asks again,
# and then those who have gone are let go.
bus = nil
before = nil
count = lambda do
  manager = bus.instance_variable_get(:@connection_manager)
  if manager.client_count == before
    manager.instance_variable_get(:@clients).values.each do |client|
      waiting = client.io&.recv_nonblock(1, Socket::MSG_PEEK, exception: false)
      manager.remove_client(client) unless waiting == :wait_readable
    rescue SystemCallError, IOError
      manager.remove_client(client)
    end
  end
  before = manager.client_count
end

api = lambda do |env|
  answer =
    case env["PATH_INFO"]
    when "/api/v1/publish"
      publish.call(JSON.parse(env["rack.input"].read))
    when "/api/v1/publish/batch"
      { results: JSON.parse(env["rack.input"].read)["messages"].map(&publish) }
    when "/api/v1/stats"
      held = count.call
      { clients: { stream: held, long_poll: held } }
    end
  body = JSON.dump(answer)
  [200, { "content-type" => "application/json", "content-length" => body.bytesize.to_s }, [body]]
end

bus = MessageBus::Rack::Middleware.new(api)
run bus
