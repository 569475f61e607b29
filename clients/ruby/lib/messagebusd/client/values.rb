# frozen_string_literal: true

module Messagebusd
  # A published message, as servers see it. The lists say who may see it; nil does not restrict.
  Message = Struct.new(
    :channel, :message_id, :global_id, :data, :site_id, :user_ids, :group_ids, :client_ids,
    keyword_init: true
  ) do
    # Reads a message as it is on the wire. Raises UnexpectedAnswer.
    def self.read(document)
      is_message = document.is_a?(Hash) && document["channel"].is_a?(String) &&
        document["message_id"].is_a?(Integer) && document["global_id"].is_a?(Integer) &&
        document.key?("data")
      raise UnexpectedAnswer, "this is not a message" unless is_message

      new(**members.to_h { |name| [name, document[name.to_s]] })
    end
  end

  # A message was taken. While it waits for the store (`queued`) it has no ids yet; `repeated`: an
  # earlier request with this idempotency key had published it already.
  Published = Struct.new(:channel, :message_id, :global_id, :queued, :repeated, keyword_init: true)

  # Notice of a subscription: the messages between these two ids are gone from the backlog.
  Gap = Struct.new(:channel, :after_id, :before_id)

  # Notice of a subscription: ids began anew, as after a flush, and it goes on after `last_id` (of all
  # channels, if `channel` is nil).
  Restarted = Struct.new(:channel, :last_id)

  # Notice of a subscription: the stream ended, and is opened again in `retry_in` seconds. `code` is the daemon's, or "broken".
  # Messages may be missing only where `may_have_missed` is true: all channels were followed, and the
  # store was away.
  Interrupted = Struct.new(:code, :detail, :retry_in, :may_have_missed)
end
