# frozen_string_literal: true

require "securerandom"

require_relative "client/version"
require_relative "client/errors"
require_relative "client/values"
require_relative "client/http"
require_relative "client/subscription"
require_relative "client/webhook"
require_relative "client/token"

# A client of messagebusd, a standalone server for message buses.
module Messagebusd
  # Talks to messagebusd's HTTP API; may be used by several threads, and over a fork.
  #
  #   bus = Messagebusd::Client.new("http://127.0.0.1:8090", key: ENV.fetch("MESSAGEBUSD_KEY"))
  #   bus.publish("/chat/1", { text: "Hello" }, user_ids: [42])
  #
  # Calls that may be sent twice are tried again when the connection fails, and when the daemon says
  # that it cannot just now (429, 503): for `retry_for` seconds altogether, with full jitter.
  # Publishing is among them: each call has an idempotency key, so that a message whose answer got
  # lost is not published again. All raise Messagebusd::Error.
  class Client
    API = "/api/v1/"
    PAGE_SIZE = 1000
    OPTIONS = %i[
      site_id user_ids group_ids client_ids max_backlog_size max_backlog_age queue_in_memory
    ].freeze
    BACKOFF_SECONDS = 0.2
    MAX_BACKOFF_SECONDS = 5.0
    private_constant :API, :PAGE_SIZE, :OPTIONS, :BACKOFF_SECONDS, :MAX_BACKOFF_SECONDS

    # `timeout` are the seconds one try may take, `retry_for` those after which no other is made.
    # `ssl` are attributes of Net::HTTP, such as `{ ca_file: "/etc/ssl/our-ca.pem" }`.
    def initialize(url, key: nil, timeout: 10, retry_for: 30, ssl: {})
      @http = HTTP.new(url, key, timeout, ssl)
      @retry_for = retry_for
    end

    # Closes the connections that are kept. Subscriptions have their own.
    def close
      @http.close
    end

    # Publishes a message and returns a Published. `options` are those of MessageBus.publish:
    # site_id, user_ids, group_ids, client_ids, max_backlog_size, max_backlog_age, queue_in_memory.
    def publish(channel, data, idempotency_key: nil, **options)
      body = JSON.generate(fields({ channel: channel, data: data, **options }))
      answer = send_again("POST", "publish", body: body, headers: key_header(idempotency_key))
      published(answer.object, repeated?(answer))
    end

    # Publishes up to 1000 messages in order, each a Hash with channel, data and options. Returns a
    # Published or a RequestRefused for each: one that is refused does not stop the others.
    def publish_batch(messages, idempotency_key: nil)
      return [] if messages.empty?

      body = JSON.generate({ messages: messages.map { |each| fields(each) } })
      headers = key_header(idempotency_key)
      deadline = now + @retry_for
      loop do
        answer = send_again("POST", "publish/batch", body: body, headers: headers)
        results = list(answer.object, "results").map { |each| result(each, repeated?(answer)) }
        raise UnexpectedAnswer, "there are not as many results as messages" if results.size != messages.size

        # Sent again with its key, a batch goes on where the store went away.
        away = results.any? { |each| each.is_a?(RequestRefused) && each.code == "store_unavailable" }
        delay = 1 + rand
        return results if !away || now + delay >= deadline

        sleep(delay)
      end
    end

    # The last id of a channel, 0 if there is none.
    def last_id(channel, site_id: nil)
      integer(send_again("GET", "last_id", query: { channel: channel, site_id: site_id }).object, "last_id")
    end

    # The last ids of some channels, as a Hash.
    def last_ids(*channels, site_id: nil, retry_for: @retry_for)
      body = JSON.generate({ channels: channels, site_id: site_id })
      ids = send_again("POST", "last_ids", retry_for: retry_for, body: body).object["last_ids"]
      raise UnexpectedAnswer, "last ids are missing" unless ids.is_a?(Hash)

      channels.to_h { |channel| [channel, integer(ids, channel)] }
    end

    # A channel's stored messages after `last_id`, as an Enumerator that reads page by page.
    def backlog(channel, last_id = 0, site_id: nil)
      pages("backlog", last_id, :message_id, channel: channel, site_id: site_id)
    end

    # The same for all channels of all sites, by global id.
    def global_backlog(last_id = 0)
      pages("global_backlog", last_id, :global_id)
    end

    # The message of this id, or the last one; nil if it is not stored.
    def message(channel, message_id = nil, site_id: nil)
      which = message_id ? { message_id: message_id } : { last: "true" }
      Message.read(send_again("GET", "message", query: { channel: channel, site_id: site_id, **which }).object)
    rescue InvalidRequest => e
      raise unless e.code == "not_found"
    end

    # Forgets a channel's messages; its ids continue. Not tried again: another try could take
    # messages that came in meanwhile.
    def delete_backlog(channel, site_id: nil)
      @http.ask("DELETE", "#{API}backlog", query: { channel: channel, site_id: site_id })
      nil
    end

    # Follows channels in a thread of its own, whoever messages are for, and yields each message
    # there:
    #
    #   bus.subscribe("/orders") { |message| ... }                  # from now on
    #   bus.subscribe({ "/orders" => last_seen }) { |message| ... } # after this one
    #
    # Positions are those of the protocol. When the stream breaks it is opened again where it was:
    # within the backlog each message comes once. `on_notice` is called with Interrupted, Gap and
    # Restarted. Returns the Subscription.
    def subscribe(*channels, site_id: nil, on_notice: nil, logger: nil, &block)
      positions = channels.first.is_a?(Hash) ? channels.first : channels.to_h { |each| [each, nil] }
      raise ArgumentError, "name at least one channel" if positions.empty?

      following = Subscription::Channels.new(positions, site_id)
      Subscription.new(self, @http, following, on_notice, logger, &block)
    end

    # Follows all channels, of all sites or of one, after a global id or from now on.
    def subscribe_all(last_id = nil, site_id: nil, on_notice: nil, logger: nil, &block)
      following = Subscription::Everything.new(last_id, site_id)
      Subscription.new(self, @http, following, on_notice, logger, &block)
    end

    # Full jitter, doubling; never before the daemon wants to be asked again.
    def self.delay(error, attempt, base: BACKOFF_SECONDS, limit: MAX_BACKOFF_SECONDS) # :nodoc:
      retry_after = error.retry_after if error.is_a?(TemporarilyRefused)
      return retry_after + rand if retry_after

      rand * [limit, base * (2**[attempt, 64].min)].min
    end

    private

    def send_again(method, call, retry_for: @retry_for, **options)
      deadline = now + retry_for
      attempt = 0
      begin
        @http.ask(method, API + call, **options)
      rescue ConnectionFailed, TemporarilyRefused => e
        delay = Client.delay(e, attempt)
        raise if now + delay >= deadline

        attempt += 1
        sleep(delay)
        retry
      end
    end

    def pages(call, last_id, position, **query)
      Enumerator.new do |yielder|
        loop do
          answer = send_again("GET", call, query: { **query, last_id: last_id, limit: PAGE_SIZE }).object
          messages = list(answer, "messages").map { |each| Message.read(each) }
          messages.each { |each| yielder << each }
          break if messages.empty? || !answer["more"]

          last_id = messages.last[position]
        end
      end
    end

    # What is said of a message: nil is not said.
    def fields(message)
      message = message.transform_keys(&:to_sym)
      unknown = message.keys - OPTIONS - %i[channel data]
      raise ArgumentError, "unknown: #{unknown.join(", ")}" unless unknown.empty?

      # `data` may be nil.
      { channel: message.fetch(:channel), data: message.fetch(:data), **message.slice(*OPTIONS).compact }
    end

    def key_header(idempotency_key)
      { "Idempotency-Key" => idempotency_key || SecureRandom.uuid }
    end

    def repeated?(answer)
      answer.headers["idempotent-replayed"] == "true"
    end

    def result(entry, repeated)
      raise UnexpectedAnswer, "this is not a result" unless entry.is_a?(Hash)
      return published(entry, repeated) unless entry.key?("error")

      refusal(entry["error"])
    end

    def refusal(problem)
      status = problem["status"] if problem.is_a?(Hash)
      HTTP.check(HTTP::Answer.new(status.to_i, {}, JSON.generate(problem)))
    rescue RequestRefused => e
      e
    else
      raise UnexpectedAnswer, "a refusal that is none"
    end

    def published(answer, repeated)
      queued = answer["queued"] == true
      Published.new(
        channel: answer["channel"],
        message_id: queued ? nil : integer(answer, "message_id"),
        global_id: queued ? nil : integer(answer, "global_id"),
        queued: queued,
        repeated: repeated
      )
    end

    def list(answer, name)
      answer[name].is_a?(Array) ? answer[name] : raise(UnexpectedAnswer, "#{name} is missing in the answer")
    end

    def integer(answer, name)
      answer[name].is_a?(Integer) ? answer[name] : raise(UnexpectedAnswer, "#{name} is missing in the answer")
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
