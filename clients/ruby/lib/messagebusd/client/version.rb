# frozen_string_literal: true

module Messagebusd
  class Client
    # Of this gem.
    VERSION = "0.1.0"
  end
end
