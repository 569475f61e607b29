# frozen_string_literal: true

quiet
environment "production"
threads 5, 5
# Otherwise connections are closed after ten requests while others wait for a thread.
max_fast_inline 1_000_000_000
# Nor when they are idle while thousands of others come.
persistent_timeout 3600
