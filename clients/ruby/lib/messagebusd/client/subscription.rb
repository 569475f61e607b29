# frozen_string_literal: true

module Messagebusd
  class Client
    # Channels that are followed in a thread; see Client#subscribe.
    class Subscription
      # :stopdoc:
      STATUS_CHANNEL = "/__status"
      FROM_NOW = -1
      SILENCE_SECONDS = 30 # the daemon sends a heartbeat every 15
      BACKOFF_SECONDS = 0.5
      MAX_BACKOFF_SECONDS = 30.0

      # Why a stream ends, as its last line says.
      class Ended < StandardError
        attr_reader :code

        def initialize(code, detail)
          super(detail)
          @code = code
        end
      end

      # :startdoc:

      # Why the thread has ended by itself, if it has: going on is no use.
      attr_reader :error

      def initialize(client, http, following, on_notice, logger, &block) # :nodoc:
        raise ArgumentError, "a block is needed" unless block

        @client = client
        @http = http
        @following = following
        @on_notice = on_notice
        @logger = logger
        @block = block
        @lock = Mutex.new
        @stopped = ConditionVariable.new
        @is_stopped = false
        @failures = 0
        @thread = Thread.new { follow }
        @thread.name = "messagebusd-subscription"
        @thread.report_on_exception = false
      end

      # Where each channel is: saved when a message is dealt with, and given to Client#subscribe,
      # it goes on after that one in another process. Empty if all channels are followed.
      def positions
        @following.positions.dup
      end

      # The same where all channels are followed: a global id.
      def last_id
        @following.last_id
      end

      # Whether nothing more will come: it was stopped, or has ended by itself.
      def stopped?
        !@thread.alive?
      end

      # Ends it and waits for that, unless the block itself asks.
      def stop
        @lock.synchronize do
          @is_stopped = true
          @stopped.broadcast
          begin
            @connection&.finish
          rescue IOError
            nil # it was not open any more
          end
        end
        @thread.join unless @thread == Thread.current
        nil
      end

      # Waits until it ends, or for so long. Raises the error that has ended it.
      def join(seconds = nil)
        ended = @thread.join(seconds)
        raise @error if ended && @error

        ended
      end

      private

      def follow
        until @is_stopped
          begin
            read
            raise ConnectionFailed, "the stream broke off"
          rescue Ended, ConnectionFailed => e
            again(e)
          rescue RequestRefused => e
            raise unless e.is_a?(TemporarilyRefused) || e.status >= 500

            again(e)
          end
        end
      rescue StandardError => e
        @error = e unless @is_stopped
        complain("a subscription has ended: #{e.class}: #{e.message}") unless @is_stopped
      end

      def again(ending)
        return if @is_stopped

        code = ending.respond_to?(:code) && !ending.code.empty? ? ending.code : "broken"
        delay = Client.delay(ending, @failures, base: BACKOFF_SECONDS, limit: MAX_BACKOFF_SECONDS)
        @failures += 1
        missed = !@following.last_id.nil? && code == "interrupted"
        notice(Interrupted.new(code, ending.message, delay, missed))
        @lock.synchronize { @stopped.wait(@lock, delay) unless @is_stopped }
      end

      def read
        lines = 0
        request = @following.request(@client)
        @http.stream(*request.first(2), **request.last, silence: SILENCE_SECONDS, opened: method(:opened)) do |line|
          lines += 1
          @failures = 0 if lines > 1 # it begins with a heartbeat
          message, notices = @following.take(line)
          notices.each { |each| notice(each) }
          deliver(message) if message
          return if @is_stopped
        end
      ensure
        @lock.synchronize { @connection = nil }
      end

      def opened(connection)
        @lock.synchronize do
          raise IOError, "stopped" if @is_stopped

          @connection = connection
        end
      end

      def deliver(message)
        @block.call(message)
      rescue StandardError => e
        complain("a subscription's block failed: #{e.full_message(highlight: false)}")
      end

      def notice(notice)
        @on_notice&.call(notice)
      rescue StandardError => e
        complain("a subscription's on_notice failed: #{e.full_message(highlight: false)}")
      end

      def complain(text)
        @logger ? @logger.warn(text) : warn(text)
      end

      # What a line says, nil for a heartbeat. Raises Ended at the last one.
      def self.document(line)
        return if line.b.strip.empty?

        document = HTTP.parse(line)
        raise UnexpectedAnswer, "a line that is not a JSON object" unless document.is_a?(Hash)

        ending = document["end"]
        raise Ended.new(ending["code"].to_s, ending["detail"].to_s) if ending.is_a?(Hash)

        document
      end

      # Channels of one site, each from a position of its own.
      class Channels # :nodoc: all
        attr_reader :positions, :last_id

        def initialize(positions, site_id)
          @site_id = site_id
          # Without a position the stream would not tell where it began, and could not go on there.
          @positions = positions.transform_values { |position| position || FROM_NOW }
          @floors = {}
        end

        def request(client)
          asked = @positions.dup
          looking_back = asked.select { |_, position| position < FROM_NOW }.keys
          unless looking_back.empty?
            # What is published until the stream is open, perhaps at a later try, is wanted as well.
            client.last_ids(*looking_back, site_id: @site_id, retry_for: 0).each do |channel, last_id|
              @floors[channel] ||= last_id
              asked[channel] -= [0, last_id - @floors[channel]].max
            end
          end
          body = JSON.generate({ channels: asked, site_id: @site_id }.compact)
          ["POST", "/api/v1/subscribe", { body: body }]
        end

        # A message, or none, and notices.
        def take(line)
          document = Subscription.document(line)
          return [nil, []] unless document
          return [nil, take_status(document["data"])] if document["channel"] == STATUS_CHANNEL

          message = Message.read(document)
          position = @positions.fetch(message.channel) do
            raise UnexpectedAnswer, "a message of a channel that was not asked for"
          end
          @positions[message.channel] = message.message_id
          [message, notices(message, position)]
        end

        private

        def notices(message, position)
          id = message.message_id
          return [Restarted.new(message.channel, id - 1)] if position >= id
          # PostgreSQL has one id for both, so that a channel's own ids have holes.
          return [] unless position >= 0 && position < id - 1 && id != message.global_id

          [Gap.new(message.channel, position, id)]
        end

        def take_status(data)
          raise UnexpectedAnswer, "a status without positions" unless data.is_a?(Hash)

          data.flat_map do |channel, last_id|
            unless @positions.key?(channel) && last_id.is_a?(Integer)
              raise UnexpectedAnswer, "a status of something that was not asked for"
            end
            before = @positions[channel]
            @positions[channel] = last_id
            before > last_id ? [Restarted.new(channel, last_id)] : []
          end
        end
      end

      # All channels, of all sites or of one, by global id.
      class Everything # :nodoc: all
        attr_reader :positions, :last_id

        def initialize(last_id, site_id)
          @positions = {}.freeze
          @last_id = last_id || FROM_NOW
          @site_id = site_id
        end

        def request(_client)
          ["GET", "/api/v1/subscribe", { query: { last_id: @last_id, site_id: @site_id } }]
        end

        def take(line)
          document = Subscription.document(line)
          return [nil, []] unless document

          before = @last_id
          if document["channel"] == STATUS_CHANNEL
            raise UnexpectedAnswer, "a status without a position" unless document["global_id"].is_a?(Integer)

            @last_id = document["global_id"]
            return [nil, before > @last_id ? [Restarted.new(nil, @last_id)] : []]
          end
          message = Message.read(document)
          @last_id = message.global_id
          [message, before >= @last_id ? [Restarted.new(nil, @last_id - 1)] : []]
        end
      end
    end
  end
end
