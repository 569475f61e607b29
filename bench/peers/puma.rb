# frozen_string_literal: true

quiet
environment "production"
threads 64, 64
# Otherwise connections are closed after ten requests while others wait for a thread.
max_fast_inline 1_000_000_000
