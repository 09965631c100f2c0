-- The tables for MySQL and MariaDB, drawn by: python -m companions.secure_chat.storage mysql
-- SQLite needs no file: the server makes its tables when it starts.

CREATE TABLE audit_log (
  id INTEGER NOT NULL AUTO_INCREMENT,
  event_type VARCHAR(50) NOT NULL,
  email VARCHAR(255),
  client_cert_fingerprint VARCHAR(64),
  reason VARCHAR(255),
  occurred_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP,
  ip_address VARCHAR(45),
  PRIMARY KEY (id)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE login_tries (
  subject VARCHAR(64) NOT NULL,
  tries INTEGER NOT NULL,
  free_at BIGINT NOT NULL,
  PRIMARY KEY (subject)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE users (
  id INTEGER NOT NULL AUTO_INCREMENT,
  email VARBINARY(255) NOT NULL,
  username VARBINARY(255) NOT NULL,
  pwd_hash VARBINARY(255) NOT NULL,
  created_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (id),
  UNIQUE (email),
  UNIQUE (username)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE sessions (
  id INTEGER NOT NULL AUTO_INCREMENT,
  user_id INTEGER NOT NULL,
  session_token VARCHAR(64) NOT NULL,
  client_cert_fingerprint VARCHAR(64) NOT NULL,
  server_cert_fingerprint VARCHAR(64) NOT NULL,
  transcript_hash VARCHAR(64),
  started_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP,
  ended_at TIMESTAMP NULL,
  message_count INTEGER DEFAULT 0,
  PRIMARY KEY (id),
  FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
  UNIQUE (session_token)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE resumable (
  session_id INTEGER NOT NULL,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (session_id),
  FOREIGN KEY(session_id) REFERENCES sessions (id) ON DELETE CASCADE
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;
