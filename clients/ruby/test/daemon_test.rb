# frozen_string_literal: true

# Against a daemon, whose address and key are in MESSAGEBUSD_URL and MESSAGEBUSD_KEY. Its store is
# empty; tests use channels of their own.

require "minitest/autorun"
require_relative "../lib/messagebusd/client"

class DaemonTest < Minitest::Test
  URL = ENV.fetch("MESSAGEBUSD_URL")
  KEY = ENV.fetch("MESSAGEBUSD_KEY")
  WAIT_SECONDS = 30

  def setup
    @bus = Messagebusd::Client.new(URL, key: KEY)
    @channel = "/#{name}"
  end

  def teardown
    @bus.close
  end

  def received(queue, count)
    Array.new(count) { Timeout.timeout(WAIT_SECONDS) { queue.pop } }
  end

  def test_a_message_is_published_with_all_that_is_said_of_it
    published = @bus.publish(
      @channel, { "größe" => [1.5, nil, "🚌"] },
      site_id: "forum", user_ids: [42, "42"], group_ids: ["staff"], client_ids: ["c1"],
      max_backlog_size: 2, max_backlog_age: 60, queue_in_memory: true
    )
    assert_equal [@channel, 1, false], [published.channel, published.message_id, published.repeated]
    message = @bus.message(@channel, 1, site_id: "forum")
    assert_equal({ "größe" => [1.5, nil, "🚌"] }, message.data)
    assert_equal [[42, "42"], ["staff"], ["c1"], "forum"],
                 [message.user_ids, message.group_ids, message.client_ids, message.site_id]
    assert_nil @bus.message(@channel)
  end

  def test_a_message_is_published_once
    first = @bus.publish(@channel, 1, idempotency_key: "order-1")
    again = @bus.publish(@channel, 1, idempotency_key: "order-1")
    assert_equal [first.message_id, true], [again.message_id, again.repeated]
    refused = assert_raises(Messagebusd::InvalidRequest) { @bus.publish(@channel, 2, idempotency_key: "order-1") }
    assert_equal [422, "idempotency_conflict"], [refused.status, refused.code]
  end

  def test_a_batch_says_what_became_of_each
    assert_empty @bus.publish_batch([])
    taken, refused, nobody = @bus.publish_batch(
      [
        { channel: @channel, data: nil }, { "channel" => "", "data" => 2 },
        { channel: @channel, data: 3, user_ids: [] }
      ]
    )
    assert_equal 1, taken.message_id
    assert_equal %w[invalid_channel invalid_audience], [refused.code, nobody.code]
  end

  def test_channels_are_read
    deep = 98.times.inject(1) { |inner, _| [inner] }
    @bus.publish_batch((1..1000).map { |number| { channel: @channel, data: number } })
    @bus.publish(@channel, deep)
    assert_equal 1001, @bus.last_id(@channel)
    assert_equal({ @channel => 1001, "/none" => 0 }, @bus.last_ids(@channel, "/none"))
    assert_equal [1000, deep], @bus.backlog(@channel, 999).map(&:data)
    assert_equal (2..1001).to_a, @bus.backlog(@channel).map(&:message_id)
    first = @bus.backlog(@channel).first.global_id
    assert_equal @channel, @bus.global_backlog(first - 1).first.channel
    @bus.delete_backlog(@channel)
    assert_empty @bus.backlog(@channel).to_a
    assert_equal 1002, @bus.publish(@channel, 1).message_id
  end

  def test_refusals_say_why
    stranger = Messagebusd::Client.new(URL, key: "another key")
    refused = assert_raises(Messagebusd::NotAllowed) { stranger.last_id("/a") }
    assert_equal "unauthorized", refused.code
    refute_includes refused.message, "another key"
    subscription = stranger.subscribe("/a", logger: Object.new.tap { |it| def it.warn(_) = nil }) { nil }
    assert_raises(Messagebusd::NotAllowed) { subscription.join(WAIT_SECONDS) }
    assert subscription.stopped?
  end

  def test_channels_are_followed
    3.times { |number| @bus.publish(@channel, number, user_ids: [7]) }
    queue = Queue.new
    subscription = @bus.subscribe({ @channel => 1, "/other" => nil }) { |message| queue << message }
    assert_equal [1, 2], received(queue, 2).map(&:data)
    @bus.publish(@channel, "live")
    message, = received(queue, 1)
    assert_equal ["live", 4, nil], [message.data, message.message_id, message.user_ids]
    assert_equal 4, subscription.positions[@channel]
    assert_nil subscription.last_id
    subscription.stop
    assert subscription.stopped?
    @bus.publish(@channel, "later")
    subscription = @bus.subscribe(subscription.positions) { |message| queue << message }
    assert_equal ["later"], received(queue, 1).map(&:data)
    subscription.stop
  end

  def test_all_channels_are_followed
    start = @bus.publish(@channel, 0).global_id
    queue = Queue.new
    subscription = @bus.subscribe_all(start) { |message| queue << message }
    @bus.publish(@channel, 1, site_id: "forum")
    message, = received(queue, 1)
    assert_equal [1, "forum", subscription.last_id], [message.data, message.site_id, message.global_id]
    subscription.stop
  end

  def test_a_block_that_fails_or_stops
    logged = []
    logger = Object.new
    logger.define_singleton_method(:warn) { |text| logged << text }
    queue = Queue.new
    subscription = nil
    ready = Queue.new
    subscription = @bus.subscribe({ @channel => 0 }, logger: logger) do |message|
      ready.pop if message.data == 0
      queue << message.data
      raise "the block's own" if message.data == 0

      subscription.stop if message.data == 1
    end
    ready << true
    3.times { |number| @bus.publish(@channel, number) }
    subscription.join(WAIT_SECONDS)
    assert subscription.stopped?
    assert_equal [0, 1], received(queue, 2)
    assert_equal 1, logged.size
    assert_includes logged.first, "the block's own"
  end

  def test_it_works_after_a_fork
    @bus.publish(@channel, 1)
    child = fork do
      @bus.publish(@channel, 2)
      exit!(0)
    end
    Process.wait(child)
    @bus.publish(@channel, 3)
    assert_equal [1, 2, 3], @bus.backlog(@channel).map(&:data)
  end
end
