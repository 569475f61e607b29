# frozen_string_literal: true

# What needs no daemon: the vectors that all clients agree on, and errors.

require "minitest/autorun"
require_relative "../lib/messagebusd/client"

class SignaturesTest < Minitest::Test
  VECTORS = JSON.parse(File.read(File.expand_path("../../vectors/signatures.json", __dir__)))

  VECTORS.fetch("cases").each do |vector|
    define_method("test_#{vector["name"]}") do
      verifier = Messagebusd::WebhookVerifier.new(*vector["secrets"], tolerance: vector["tolerance"])
      now = Time.at(vector["now"])
      environment = vector["headers"].transform_keys { |name| "HTTP_#{name.upcase.tr("-", "_")}" }
      [vector["headers"], environment].each do |headers|
        verify = -> { verifier.verify(vector["body"], headers, now: now) }
        if vector["error"]
          assert_equal vector["error"].to_sym, assert_raises(Messagebusd::InvalidWebhook, &verify).reason
        else
          assert_equal vector["headers"].transform_keys(&:downcase)["webhook-id"], verify.call.id
        end
      end
    end
  end

  def test_a_secret_that_is_none_is_refused
    [[], [""], ["whsec_"], ["whsec_?"]].each do |secrets|
      assert_raises(ArgumentError) { Messagebusd::WebhookVerifier.new(*secrets) }
    end
  end
end

class TokenTest < Minitest::Test
  def test_a_token_says_who_somebody_is
    token = Messagebusd.mint_token(
      "s" * 32, 42, group_ids: [1, "a"], site_id: "forum", channels: ["/c/*"], expires_in: 60, now: Time.at(100)
    )
    header, payload = token.split(".").first(2).map do |part|
      JSON.parse((part + "=" * (-part.size % 4)).tr("-_", "+/").unpack1("m0"))
    end
    assert_equal({ "alg" => "HS256", "typ" => "JWT" }, header)
    assert_equal(
      {
        "iat" => 100, "exp" => 160, "sub" => 42, "groups" => [1, "a"], "site" => "forum",
        "channels" => ["/c/*"]
      },
      payload
    )
  end

  def test_a_weak_secret_is_refused
    assert_raises(ArgumentError) { Messagebusd.mint_token("short", 1, expires_in: 1) }
  end
end

class ClientTest < Minitest::Test
  def test_a_url_that_is_none_is_refused
    ["127.0.0.1:80", "ftp://a", "http://a?b=c", ""].each do |url|
      assert_raises(ArgumentError, URI::InvalidURIError) { Messagebusd::Client.new(url) }
    end
  end

  def test_nobody_there_is_told_in_time
    client = Messagebusd::Client.new("http://127.0.0.1:1", retry_for: 0.3)
    assert_raises(Messagebusd::ConnectionFailed) { client.last_id("/a") }
  end

  def test_waits_are_within_their_bounds
    limited = Messagebusd::TemporarilyRefused.new(429, "rate_limited", "", nil, 7)
    assert_includes 7..8, Messagebusd::Client.delay(limited, 3)
    failed = Messagebusd::ConnectionFailed.new("x")
    assert_includes 0..0.2, Messagebusd::Client.delay(failed, 0)
    assert_includes 0..5, Messagebusd::Client.delay(failed, 10_000)
  end

  def test_what_is_no_option_is_refused
    client = Messagebusd::Client.new("http://127.0.0.1:1")
    assert_raises(ArgumentError) { client.publish("/a", 1, user_id: 42) }
    assert_raises(JSON::GeneratorError) { client.publish("/a", Float::NAN) }
    assert_raises(ArgumentError) { client.subscribe { nil } }
    assert_raises(ArgumentError) { client.subscribe("/a") }
  end
end

class FollowingTest < Minitest::Test
  include Messagebusd

  def line(channel, message_id, global_id = 1000)
    JSON.generate({ global_id: global_id, message_id: message_id, channel: channel, data: message_id })
  end

  def status(data, global_id = -1)
    JSON.generate({ global_id: global_id, message_id: -1, channel: "/__status", data: data })
  end

  def following(positions)
    Client::Subscription::Channels.new(positions, nil)
  end

  VECTORS = JSON.parse(File.read(File.expand_path("../../vectors/following.json", __dir__)))

  VECTORS.fetch("cases").each do |vector|
    define_method("test_#{vector["name"]}") do
      everything = Client::Subscription::Everything.new(vector["last_id"], nil) if vector.key?("last_id")
      followed = everything || following(vector["channels"])
      received = []
      told = []
      ending = nil
      vector["lines"].each do |text|
        message, notices = followed.take(text)
        told.concat(notices.map { |notice| as_vector(notice) })
        received << [message.channel, message.message_id] if message
      rescue Client::Subscription::Ended, UnexpectedAnswer => error
        ending = error
      end
      assert_equal vector["received"], received
      assert_equal vector["notices"], told
      expected = vector["error"] ? UnexpectedAnswer : (Client::Subscription::Ended if vector["end"])
      assert_equal [expected], [ending&.class]
      assert_equal vector["end"], ending.code if vector["end"]
      if everything
        assert_equal vector["last_id_after"], followed.last_id
      else
        assert_equal vector["positions"], followed.positions
      end
    end
  end

  def as_vector(notice)
    case notice
    when Gap
      { "kind" => "gap", "channel" => notice.channel, "after" => notice.after_id, "up_to" => notice.before_id - 1 }
    when Restarted
      { "kind" => "restarted", "channel" => notice.channel, "last_id" => notice.last_id }
    end
  end

  def test_positions_follow_what_comes
    channels = following({ "/a" => 5, "/b" => -1, "/c" => nil })
    assert_equal [nil, []], channels.take("")
    assert_equal [nil, []], channels.take(status({ "/b" => 7, "/c" => 0 }))
    message, notices = channels.take(line("/a", 6))
    assert_equal [6, []], [message.data, notices]
    assert_equal({ "/a" => 6, "/b" => 7, "/c" => 0 }, channels.positions)
  end

  def test_what_is_missing_is_told
    channels = following({ "/a" => 5, "/b" => 9 })
    assert_equal [Gap.new("/a", 5, 8)], channels.take(line("/a", 8)).last
    assert_equal [nil, [Restarted.new("/b", 2)]], channels.take(status({ "/b" => 2 }))
    assert_equal [Restarted.new("/a", 0)], channels.take(line("/a", 1)).last
    # PostgreSQL has one id for both.
    assert_empty channels.take(line("/a", 9, 9)).last
  end

  def test_looking_back_survives_a_stream_that_brought_nothing
    channels = following({ "/a" => -3, "/b" => 1 })
    asked = lambda do |last_id|
      client = Object.new
      client.define_singleton_method(:last_ids) { |*_, **_| { "/a" => last_id } }
      JSON.parse(channels.request(client).last[:body])["channels"]
    end
    assert_equal({ "/a" => -3, "/b" => 1 }, asked.call(10))
    assert_equal({ "/a" => -7, "/b" => 1 }, asked.call(14))
    channels.take(line("/a", 9))
    assert_equal({ "/a" => 9, "/b" => 1 }, asked.call(99))
  end

  def test_all_channels_are_followed_by_global_id
    everything = Client::Subscription::Everything.new(nil, nil)
    everything.take(status({}, 50))
    assert_equal 50, everything.last_id
    assert_empty everything.take(line("/a", 1, 57)).last
    assert_equal [Restarted.new(nil, 3)], everything.take(status({}, 3)).last
    assert_equal [Restarted.new(nil, 1)], everything.take(line("/a", 1, 2)).last
  end

  def test_a_line_that_is_none_is_refused
    [
      "[]", "oops", "{}", "\xff", line("/other", 1), status({ "/other" => 1 }), status([]),
      '{"channel":"/a","message_id":"1","global_id":1,"data":1}'
    ].each do |text|
      assert_raises(UnexpectedAnswer, text) { following({ "/a" => 0 }).take(text) }
    end
  end

  def test_the_last_line_says_why
    ended = assert_raises(Client::Subscription::Ended) do
      following({ "/a" => 0 }).take('{"end":{"code":"draining","detail":"stops"}}')
    end
    assert_equal "draining", ended.code
  end
end
