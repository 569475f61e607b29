<?php
// PHP's own server and sessions in the place of Laravel's: what is of Laravel in the page is repeated
// here, what is plain PHP is run.
require __DIR__ . '/app/Services/MessageBus.php';

use App\Services\MessageBus;

$users = [
    42 => ['id' => 42, 'groups' => [7], 'banned' => false],
    43 => ['id' => 43, 'groups' => [], 'banned' => false],
    44 => ['id' => 44, 'groups' => [], 'banned' => true],
];
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$body = file_get_contents('php://input');
session_save_path(__DIR__);

function answer(int $status, string $text): never
{
    http_response_code($status);
    exit($text);
}

if ($path === '/messagebus/lookup') {
    $signature = array_map(fn ($name) => $_SERVER["HTTP_WEBHOOK_$name"] ?? null, ['ID', 'TIMESTAMP', 'SIGNATURE']);
    MessageBus::isSigned(...$signature, body: $body) || answer(401, 'not signed by messagebusd');
    $cookie = json_decode($body, true)['headers']['cookie'] ?? '';
    parse_str(strtr($cookie, ['; ' => '&', '&' => '%26', '+' => '%2B']), $cookies);
    $_COOKIE = $cookies;
    session_id($cookies['PHPSESSID'] ?? session_create_id());
}
session_start();
$user = $users[$_SESSION['user_id'] ?? 0] ?? null;

if ($path === '/messagebus/lookup') {
    $user === null && answer(200, '{}');
    $user['banned'] && answer(403, 'You are banned.');
    answer(200, json_encode(['user_id' => $user['id'], 'group_ids' => $user['groups']]));
}
if ($path === '/messagebus/token') {
    $user === null && answer(401, 'not logged in');
    answer(200, json_encode(['token' => MessageBus::pollToken($user['id'], $user['groups'])]));
}
if (preg_match('#^/topic/(\d+)$#', $path, $found)) {
    $json = json_encode(MessageBus::positions("/topic/$found[1]"), JSON_HEX_TAG);
    answer(200, "<script type=\"application/json\" id=\"positions\">$json</script>");
}
if (preg_match('#^/login/(\d+)$#', $path, $found)) {
    $_SESSION['user_id'] = (int) $found[1];
    answer(200, '{}');
}
if ($path === '/logout') {
    session_destroy();
    MessageBus::logOut($user['id']);
    answer(200, '{}');
}
if ($path === '/say') {
    $said = json_decode($body, true);
    MessageBus::publish('/topic/1', $said['text'], $said['audience']);
    answer(200, '{}');
}
answer(404, 'not here');
