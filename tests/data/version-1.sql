BEGIN TRANSACTION;
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, own_title TEXT, first_line TEXT, system_prompt TEXT, default_model TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "conversations" VALUES('empty',NULL,NULL,NULL,'openrouter/auto','2026-11-26T12:25:50.974839Z','2026-11-26T12:25:50.974839Z');
INSERT INTO "conversations" VALUES('in-progress',NULL,'Are you there?',NULL,'openrouter/auto','2026-11-26T12:25:50.973206Z','2026-11-26T12:25:50.974083Z');
INSERT INTO "conversations" VALUES('kept','Of the first version','What is kept?','Be brief. é 😀','a/one','2026-11-26T12:25:50.968963Z','2026-11-26T12:25:50.972653Z');
CREATE TABLE messages (
    conversation TEXT, place INTEGER, head TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (conversation, place)
) WITHOUT ROWID;
INSERT INTO "messages" VALUES('in-progress',0,'{"id":"q-2","role":"user","timestamp":"2026-11-26T12:25:50.973611Z","status":"complete"}','Are you there?
Yes?');
INSERT INTO "messages" VALUES('in-progress',1,'{"id":"e79488c5-296e-4def-b526-b1a37d58d66b","role":"assistant","model":"openrouter/auto","timestamp":"2026-11-26T12:25:50.974083Z","status":"streaming","question_id":"q-2"}','');
INSERT INTO "messages" VALUES('kept',0,'{"id":"q-1","role":"user","model":"b/two","timestamp":"2026-11-26T12:25:50.969556Z","status":"complete"}','What is kept?');
INSERT INTO "messages" VALUES('kept',1,'{"id":"702abe86-5ee5-4d6b-b3c1-891252f4d933","role":"assistant","model":"b/two","timestamp":"2026-11-26T12:25:50.970089Z","status":"complete","finish_reason":"stop","usage":"{\"total_tokens\": 17, \"cost\": 0.5}","generation_id":"gen-1","question_id":"q-1","switches":[0,4]}','Hm, All of it. é');
INSERT INTO "messages" VALUES('kept',2,'{"id":"0d47bfe8-d6d6-4ad9-9a56-680f51cd40c4","role":"user","timestamp":"2026-11-26T12:25:50.971490Z","status":"complete"}','And what failed?');
INSERT INTO "messages" VALUES('kept',3,'{"id":"64782ce6-ecaf-4f26-9f77-9d32f05483b9","role":"assistant","model":"a/one","timestamp":"2026-11-26T12:25:50.971952Z","status":"failed","usage":"{\"cost\": 0.25}","error":{"code":429,"message":"Wait.","retryable":true,"retry_after":20.0},"generation_id":"gen-2","question_id":"0d47bfe8-d6d6-4ad9-9a56-680f51cd40c4"}','Half');
CREATE TABLE pieces (
    message TEXT, position INTEGER, kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (message, position)
) WITHOUT ROWID;
INSERT INTO "pieces" VALUES('e79488c5-296e-4def-b526-b1a37d58d66b',0,'content','Yes, ');
INSERT INTO "pieces" VALUES('e79488c5-296e-4def-b526-b1a37d58d66b',5,'content','I am ');
PRAGMA application_id = 1129468761;
PRAGMA user_version = 1;
COMMIT;
